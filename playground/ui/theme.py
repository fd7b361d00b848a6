"""Colours, fonts and corners of the page, as one Gradio theme. Layout, and what a theme has no name for, is in
`assets/style.css`.
"""

import gradio as gr

SANS = ("Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def nudge() -> gr.themes.Base:
    """The theme, light and dark. Fonts are the reader's own: the page loads nothing from elsewhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=[gr.themes.Font(name) for name in SANS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0f1115",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#171a21",
        background_fill_secondary="#f1f3f6",
        background_fill_secondary_dark="#1e222b",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171a21",
        block_border_color="#e4e7ec",
        block_border_color_dark="#2a2f3a",
        block_shadow="none",
        block_shadow_dark="none",
        border_color_primary="#e4e7ec",
        border_color_primary_dark="#2a2f3a",
        body_text_color="#1d2330",
        body_text_color_dark="#e6e9ef",
        body_text_color_subdued="#667085",
        body_text_color_subdued_dark="#8f98a8",
        input_background_fill="#ffffff",
        input_background_fill_dark="#171a21",
        button_primary_background_fill="#1d2330",
        button_primary_background_fill_hover="#343c4d",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#e6e9ef",
        button_primary_background_fill_hover_dark="#ffffff",
        button_primary_text_color_dark="#12151b",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1e222b",
        button_secondary_background_fill_hover="#f1f3f6",
        button_secondary_background_fill_hover_dark="#2a2f3a",
        block_radius="12px",
        button_small_radius="10px",
        button_medium_radius="10px",
        button_large_radius="12px",
        input_border_width="1px",
        button_border_width="1px",
        button_primary_border_color="*button_primary_background_fill",
        button_primary_border_color_dark="*button_primary_background_fill",
        button_secondary_text_color="*body_text_color",
        checkbox_label_border_width="0px",
        button_cancel_background_fill="#ffffff",
        button_cancel_background_fill_dark="#171a21",
        button_cancel_text_color="#b42318",
        button_cancel_text_color_dark="#ff8a80",
        button_cancel_border_color="#e7b4b0",
        button_cancel_border_color_dark="#7a3a36",
        button_secondary_border_color="#dfe3e9",
        button_secondary_border_color_dark="#343a47",
    )
