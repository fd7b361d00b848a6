// Keys for the buttons that are on the page anyway: 1 A, 2 B, 3 tie, 4 both bad, 0 skip, / to write, Esc to stop. Enter in the message box is Gradio's.
(() => {
  const KEYS = { 1: "vote-a", 2: "vote-b", 3: "vote-tie", 4: "vote-both-bad", 0: "vote-skip" };
  const typing = (element) => element.isContentEditable || element.matches("input:not([type=checkbox]):not([type=radio]), textarea, select");
  const press = (id) => {
    const button = document.getElementById(id);
    if (button && button.offsetParent && !button.disabled) { button.click(); return true; }
    return false;
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Escape") { press("stop"); return; }
    const box = document.querySelector("#message textarea");
    if (event.target === box && event.key === "Enter" && !event.shiftKey) setTimeout(() => box.blur());  // so that the next key is a vote
    if (typing(event.target)) return;
    if (event.key === "/" && box) { event.preventDefault(); box.focus(); return; }
    if (KEYS[event.key] && press(KEYS[event.key])) event.preventDefault();
  }, true);
  const chinese = () => /^zh(-CN|-SG|-Hans)?$/.test(navigator.language);
  window.nudge = {
    // a chat is deleted only when its owner says so twice
    sure: () => confirm(chinese() ? "删除这个对话？其中的文字会被清除，之后的训练也不再使用它。" : "Delete this chat? Its texts are erased, and no later round will learn from it."),
    // everything of a person, and then a page for somebody new
    forget: async () => {
      if (!confirm(chinese() ? "删除你的全部数据？所有对话、投票中的文字、评语和分享链接都会被清除，无法恢复。"
        : "Delete all your data? Every chat, what you wrote in votes and edits, thumbs and share links are erased, and nothing brings them back.")) return;
      const answer = await fetch(new URL("forget", location.href), { method: "POST", headers: { "X-Nudge": "page" } });
      if (answer.ok) location.assign(location.pathname);
      else alert((await answer.json().catch(() => ({}))).error || `${answer.status}`);
    },
  };
  document.documentElement.lang = chinese() ? "zh-CN" : "en";
})();
