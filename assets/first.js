// Runs before Gradio's own code, which keeps this function under a name of its own.
// Gradio's progress clock draws at each frame, and for ever where its component was removed meanwhile; here nobody sees it.
(() => {
  const frame = window.requestAnimationFrame.bind(window);
  const isClock = (draw) => /performance\.now\(\)-[^;]*\/1e3/.test(draw.toString());
  window.requestAnimationFrame = (draw) => isClock(draw) ? setTimeout(() => frame(draw), 1000) : frame(draw);
})();
