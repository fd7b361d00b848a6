"""The page in the browser, made with Gradio: tabs, panes, training, words in two languages."""

from playground.ui import quick_gradio as quick_gradio  # before any import of Gradio
