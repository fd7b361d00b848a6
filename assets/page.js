// Keys for the buttons that are on the page anyway: 1 A, 2 B, 3 tie, 4 both bad, 0 skip, / to write, Esc to stop, Enter for the next prompt of a queue. Enter in the message box is Gradio's.
(() => {
  const chinese = () => /^zh(-CN|-SG|-Hans)?$/.test(navigator.language);
  const KEYS = { 1: "vote-a", 2: "vote-b", 3: "vote-tie", 4: "vote-both-bad", 0: "vote-skip" };
  let isSending = false;  // a message whose replies are not shown yet
  const typing = (element) => element.isContentEditable || element.matches("input:not([type=checkbox]):not([type=radio]), textarea, select");
  const usable = (id) => {
    const button = document.getElementById(id);
    return button && button.offsetParent && !button.disabled ? button : null;
  };
  const press = (id) => {
    const button = usable(id);
    button?.click();
    return button !== null;
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Escape") { press("stop"); return; }
    const box = document.querySelector("#message textarea");
    if (event.target === box && event.key === "Enter" && !event.shiftKey) {
      isSending = box.value.trim() !== "" || usable("next-prompt") !== null;  // in an empty box, Enter takes the next prompt
      setTimeout(() => box.blur());  // so that the next key is a vote
    }
    if (typing(event.target)) return;
    if (event.key === "/" && box) { event.preventDefault(); box.focus(); return; }
    if (event.key === "Enter" && event.target === document.body && press("next-prompt")) { event.preventDefault(); return; }
    if (KEYS[event.key] && press(KEYS[event.key])) event.preventDefault();
    else if (event.target === document.body && /^\p{L}$/u.test(event.key) && box?.checkVisibility()) box.focus({ preventScroll: true });  // whoever types writes a message
  }, true);

  // A double click presses once: the second press would take another turn back. And whoever begins a chat or takes an example writes or sends at once, before the server has answered.
  const ONCE = "#undo, #regenerate, #send, #next-prompt, #new-chat, #sidebar-new, .starter";
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(ONCE);
    if (!button) return;
    if (event.detail > 1) { event.stopImmediatePropagation(); event.preventDefault(); return; }
    if (button.matches("#next-prompt")) {  // the prompt is written already: the next keys are votes
      isSending = true;
      document.activeElement.blur();
    }
    if (!button.matches("#new-chat, #sidebar-new, .starter")) return;
    isSending = false;
    document.querySelector("#message textarea")?.focus({ preventScroll: true });
  }, true);

  // What a pane shows is HTML that the server made of a text (playground/ui/text.py), with the text itself in it: that is what is copied and edited.
  const original = (value) => {
    if (!value.startsWith('<div class="said">')) return value;
    const source = new DOMParser().parseFromString(value, "text/html").querySelector(".said > .source");
    return source ? source.textContent : value;
  };
  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(original(text));
  }
  document.addEventListener("copy", (event) => {  // Gradio's way where the browser has no clipboard: a text area of its own, selected
    const area = document.activeElement;
    if (!area?.matches("textarea") || original(area.value) === area.value) return;
    event.clipboardData.setData("text/plain", original(area.value));
    event.preventDefault();
  }, true);
  const settle = (element) => {
    if (element.matches(".pane textarea") && original(element.value) !== element.value) {
      element.value = original(element.value);
      element.dispatchEvent(new Event("input", { bubbles: true }));
    }
    if (element.matches(".pane [data-testid]") && element.hasAttribute("aria-label")) element.removeAttribute("aria-label");  // it would read the HTML out
  };
  document.addEventListener("focusin", (event) => event.target.matches?.(".pane textarea") && settle(event.target));

  // An empty chat waits for words, a pair for a vote: then the keys are votes. They are already where a message was sent before the empty chat was shown.
  const waits = () => {
    const box = document.querySelector("#message textarea");
    if (!document.querySelector("#hint .idle")) isSending = false;
    else if (box && !isSending && !typing(document.activeElement)) box.focus({ preventScroll: true });
  };
  // A refusal goes with its reason: once the replies are complete that one had to wait for, or the vote is cast that was missing.
  const SEEN_SECONDS = 0.3;  // what a notice came with is painted by then
  const stage = () => document.querySelector("#hint span")?.className ?? "";
  let refusedAt = null;  // the stage of the chat at the warning on the page
  const warned = () => {
    refusedAt = null;
    setTimeout(() => { refusedAt = document.querySelector("#notice .warning") && stage(); }, 1000 * SEEN_SECONDS);
  };
  const take = () => document.querySelector("#notice .notice")?.getAnimations().forEach((animation) => animation.finish());
  document.addEventListener("click", (event) => event.target.closest("[role=tab]") && take(), true);  // a notice belongs to its tab
  const moved = () => {
    if (refusedAt === null || refusedAt === stage() || !document.getElementById("hint")?.checkVisibility()) return;
    refusedAt = null;
    take();
  };
  // A prompt of the queue is new to its reader, and the panes have followed the replies to their end: once these are complete, both are read from the prompt on,
  // and a shared chat from its beginning, unless the reader scrolls. Gradio follows the last words a moment later.
  const FOLLOWS_SECONDS = 10;
  const readFrom = (pane, place) => {
    const end = new AbortController(), meant = stage();
    const stop = () => end.abort();
    const show = () => {
      if (stage() !== meant) return stop();  // the next replies are followed
      const first = [...pane.querySelectorAll(".user-row")].at(place);
      const away = first ? first.getBoundingClientRect().top - pane.getBoundingClientRect().top : 0;
      if (away < 0) pane.scrollTop += away;
    };
    for (const name of ["wheel", "touchstart", "pointerdown", "keydown"]) pane.addEventListener(name, stop, { signal: end.signal, passive: true });
    pane.addEventListener("scroll", show, { signal: end.signal });
    setTimeout(stop, 1000 * FOLLOWS_SECONDS);
    show();
  };
  let lastStage = "";
  const reread = () => {
    const [before, now] = [lastStage, stage()];
    lastStage = now;
    if (before === now || !["voting", "shared"].includes(now)) return;
    setTimeout(() => {  // the buttons of the queue are shown by then
      if (stage() !== now || (now === "voting" && !document.querySelector(".skip-prompt")?.checkVisibility())) return;
      document.querySelectorAll(".pane .bubble-wrap").forEach((pane) => readFrom(pane, now === "shared" ? 0 : -1));
    }, 1000 * SEEN_SECONDS);
  };
  const changed = (records) => {
    for (const record of records) {
      const target = record.target;
      if (record.type === "attributes") {
        if (record.attributeName === "data-number") target.replaceWith(target.cloneNode(true));  // a notice in the place of another: seen and read out anew
        else if (record.attributeName === "aria-label") settle(target);
        else if (target.closest("#hint")) { waits(); moved(); reread(); }
        continue;
      }
      for (const node of record.addedNodes) {
        if (node.nodeType !== 1) continue;
        [node, ...node.querySelectorAll(".pane textarea, .pane [data-testid]")].forEach(settle);
        node.querySelector(":scope [data-again]")?.focus({ preventScroll: true });
        node.querySelector("#sidebar .toggle-button")?.setAttribute("aria-label", chinese() ? "对话和设置" : "Chats and settings");  // Gradio says "Toggle Sidebar"
        if (node.matches(".notice") || node.querySelector(".notice")) warned();
        if (node.closest("#hint")) { moved(); reread(); }
        if (node.id === "message" || node.id === "hint" || node.closest("#hint") || node.querySelector("#message, #hint")) waits();
      }
    }
  };
  new MutationObserver(changed).observe(document.documentElement,
    { subtree: true, childList: true, attributes: true, attributeFilter: ["data-number", "aria-label", "class"] });

  // The page asks what has changed, and clicks the hidden buttons of the parts that show it (playground/ui/refresh.py).
  const ASK_SECONDS = 1.5, LONGEST_SECONDS = 15;  // ratings and ages change although nothing is written
  const SURE_SECONDS = 3;  // after a click, a second one: the first may have met a store that was busy, or a status a second old
  const shown = { chat: { state: null, at: 0, sure: true } };  // by part: the state that it was last brought up to
  let server = null;
  const parts = (changes) => {
    const now = performance.now() / 1000;
    const strip = document.querySelector("#strip .strip");
    if (strip && strip.dataset.state !== changes.strip) document.getElementById("refresh-strip")?.click();
    if (server && server !== changes.server) document.getElementById("catch-up")?.click();  // the app was started anew
    server = changes.server;
    shown.chat.state ??= changes.loop;  // the first question is older than the page
    for (const button of document.querySelectorAll("[id^=refresh-]:not(#refresh-strip)")) {
      const part = button.id.slice("refresh-".length);
      if (!button.closest("[role=tabpanel]")?.checkVisibility()) continue;
      const state = part === "chat" ? changes.loop : changes.data + changes.loop;
      const before = shown[part] ?? { at: -Infinity, sure: true };
      const same = before.state === state;
      const old = now - before.at > LONGEST_SECONDS && part !== "chat";
      if (same && !old && (before.sure || now - before.at < SURE_SECONDS)) continue;
      shown[part] = { state, at: now, sure: same };
      button.click();
    }
  };
  // In an app with users: who has been signed out elsewhere, and who may only look, is told.
  const account = (status, role) => {
    const said = status === 401 ? (chinese() ? "你已退出登录。" : "You are signed out.")
      : role === "viewer" ? (chinese() ? "你可以查看一切；发送、投票和编辑需要“annotator”角色。" : "You may look at everything; to send, vote and edit takes the role annotator.") : "";
    document.documentElement.dataset.role = status === 401 ? "nobody" : role ?? "";
    let note = document.getElementById("account-note");
    if ((note?.dataset.said ?? "") === said) return;
    note?.remove();
    if (!said) return;
    note = Object.assign(document.createElement("div"), { id: "account-note", textContent: said });
    note.setAttribute("role", "status");
    note.dataset.said = said;
    if (status === 401) {
      const link = Object.assign(document.createElement("a"), { href: "sign-in", textContent: chinese() ? "重新登录" : "Sign in again" });
      note.append(" ", link);
    }
    document.body.append(note);
  };
  const ask = async () => {
    try {
      const answer = document.visibilityState === "visible"
        && await fetch(new URL("changes", location.href), { signal: AbortSignal.timeout(20000) });
      const changes = answer && answer.ok ? await answer.json() : {};
      if (answer) account(answer.status, changes.role);
      if (changes.loop) parts(changes);
    } catch { /* the server is away: Gradio says so where it matters */ }
    setTimeout(ask, 1000 * ASK_SECONDS);
  };
  ask();

  // A tab that is looked at again shows what was done in another one, once there is a network again: after a gesture that fails Gradio takes the app for gone.
  document.addEventListener("visibilitychange", async () => {
    const stop = document.getElementById("stop");
    if (document.visibilityState !== "visible" || (stop && stop.offsetParent)) return;
    try {
      if ((await fetch(new URL("changes", location.href))).ok) document.getElementById("catch-up")?.click();
    } catch { /* the next look does it */ }
  });

  // The tab of judged pairs: a button that says what somebody decides (playground/ui/data_table.py, playground/ui/own_votes.py), the fold of its fields on a phone, and its pages.
  let decision = "";
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#tab-data button");
    if (!button) return;
    if (button.dataset.decision && (!button.dataset.question || confirm(button.dataset.question))) {
      decision = button.dataset.decision;
      document.getElementById("data-decide")?.click();
    }
    if (button.matches(".fold")) button.setAttribute("aria-expanded", button.getAttribute("aria-expanded") === "false");
    if (button.matches("#earlier-pairs, #later-pairs")) document.getElementById("tab-data")?.scrollIntoView();
  });

  window.nudge = {
    // what somebody has just decided about votes, once
    decision: () => {
      const taken = decision;
      decision = "";
      return taken;
    },
    // opens the editor of the reply that the chat goes on from
    better: () => {
      const pane = document.querySelector(".pane:has(.badge.drawn), .pane:has(.badge.chosen)");
      const buttons = [...(pane?.querySelectorAll(".message-buttons-left") ?? [])].at(-1)?.querySelectorAll("button");
      buttons?.[1]?.click();  // the first one copies
      requestAnimationFrame(() => {
        const area = pane?.querySelector("textarea");
        area?.focus();
        area?.select();
        area?.scrollIntoView({ block: "nearest" });
      });
    },
    // a chat is deleted only when its owner says so twice
    sure: () => confirm(chinese() ? "删除这个对话？其中的文字会被清除，之后的训练也不再使用它。" : "Delete this chat? Its texts are erased, and no later round will learn from it."),
    // a round that is stopped does not go on
    sureToStop: () => confirm(chinese() ? "停止这一轮训练？它学到的不会保留；投票还在，留给以后的训练。" : "Stop this round? What it has learnt is not kept; the votes stay, for later rounds."),
    // whoever was given the link of an invitation can use it no more
    sureToTakeBack: () => confirm(chinese() ? "撤回这个邀请？它的链接将不再有效。" : "Take this invitation back? Its link works no more."),
    // everything of a person, and then a page for somebody new
    forget: async () => {
      if (!confirm(chinese() ? "删除你的全部数据？所有对话、投票中的文字、评语和分享链接都会被清除，无法恢复。"
        : "Delete all your data? Every chat, what you wrote in votes and edits, thumbs and share links are erased, and nothing brings them back.")) return;
      const answer = await fetch(new URL("forget", location.href), { method: "POST" });
      if (answer.ok) location.assign(location.pathname);
      else alert((await answer.json().catch(() => ({}))).error || `${answer.status}`);
    },
  };
  document.documentElement.lang = chinese() ? "zh-CN" : "en";
})();
