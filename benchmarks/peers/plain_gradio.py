"""Gradio's own chat page, as its documentation has it: what a page takes before anything is added to it. The port is
the one argument.
"""

import sys

import gradio as gr

if __name__ == "__main__":
    gr.ChatInterface(lambda message, history: "Hello").launch(server_port=int(sys.argv[1]), quiet=True)
