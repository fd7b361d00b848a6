// What the page asks the server: in order, none lost, and with a sentence where the app is away. Gradio asks by `fetch`; this stands before it.
(() => {
  const request = window.fetch.bind(window);
  const seconds = (n) => new Promise((done) => setTimeout(done, 1000 * n));

  // A gesture that meets no app, as while it starts again, is answered with a sentence: Gradio would say that the application is busy.
  const AWAY = [502, 503, 504];
  const AWAY_TEXT = /^zh(-CN|-SG|-Hans)?$/.test(navigator.language)
    ? "连接不上 Nudge，它可能正在重新启动。请稍后再试。"
    : "Nudge cannot be reached; it may be starting again. Try again in a moment.";
  const answered = async (input, init) => {
    const answer = await request(input, init);  // where nothing answers, Gradio says so, and waits for the app
    if (!AWAY.includes(answer.status)) return answer;
    const text = (await answer.json().catch(() => ({}))).detail || AWAY_TEXT;
    return new Response(JSON.stringify({ error: text, detail: text }), { status: 500, headers: { "content-type": "application/json" } });
  };

  // What a person does is done in that order: a message waits for the answers to the gestures before it, since it is meant for the page that they make.
  const GESTURE_SECONDS = 10;  // for which it waits at most
  const gestures = new Set();
  const gesture = (input, init) => {
    const answer = answered(input, init);
    gestures.add(answer);
    answer.finally(() => gestures.delete(answer)).catch(() => {});
    return answer;
  };

  // Gradio closes its stream of results after the last one (6.31), and what begins in that moment is never shown. The next event opens the stream again, so one that does nothing follows.
  let stream = null;  // the newest stream of results
  const results = (input, init) => {
    const opened = stream = { joined: false, closed: false };
    (input.signal ?? init?.signal)?.addEventListener("abort", () => {
      opened.closed = true;
      if (opened.joined && stream === opened) document.getElementById("reopen-stream")?.click();
    });
    return request(input, init);
  };
  const message = async (input, init) => {
    if (gestures.size) await Promise.race([Promise.allSettled(gestures), seconds(GESTURE_SECONDS)]);
    const answer = await answered(input, init);
    if (stream && !stream.closed) stream.joined = true;
    return answer;
  };

  // While the app is away, Gradio asks every two seconds for its number, and once that comes, it loads the page anew. The address is closed (playground/web/allowlist.py);
  // `changes` answers from the same moment on. What stands in the message box stays there for a minute, unless somebody else may sign in first (401). While a reply or
  // a comment is being written there is no number: the text would be lost, and can be copied.
  const DRAFT = "nudge-draft", DRAFT_SECONDS = 60, SIGNED_OUT = 401;
  const isWriting = () => document.querySelector(".pane textarea") || document.activeElement?.closest("#comment");
  const isBack = async (answer) => {
    try {
      return answer.status === SIGNED_OUT || (answer.ok && "server" in await answer.clone().json());
    } catch {
      return false;  // a proxy's page that says 200
    }
  };
  const back = async () => {
    const answer = await request(new URL("changes", location.href));
    if (isWriting() || !await isBack(answer)) return new Response(null, { status: 503 });
    const words = document.querySelector("#message textarea")?.value;
    try {
      if (words && answer.ok) sessionStorage.setItem(DRAFT, JSON.stringify({ words, at: Date.now() }));
    } catch { /* a browser that keeps nothing for this page */ }
    return Response.json({ app_id: null });
  };
  const LOOK_SECONDS = 0.2;
  const restore = async (words) => {
    let box = null;
    while (!(box = document.querySelector("#message textarea")) || !document.querySelector("#hint span")) await seconds(LOOK_SECONDS);
    box.value = box.value ? `${words}\n\n${box.value}` : words;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  try {
    const { words, at } = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
    sessionStorage.removeItem(DRAFT);
    if (words && Date.now() - at < 1000 * DRAFT_SECONDS) restore(words);
  } catch { /* as above */ }

  const ROUTES = { "/run/predict": gesture, "/queue/join": message, "/queue/data": results, "/app_id": back };
  window.fetch = (input, init) => {
    const { pathname } = new URL(input.url ?? input, location.href);
    const route = Object.keys(ROUTES).find((end) => pathname.endsWith(end));
    return route ? ROUTES[route](input, init) : request(input, init);
  };
})();
