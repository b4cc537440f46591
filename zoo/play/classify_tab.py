"""The tab on which pictures are drawn and classified."""

from __future__ import annotations

from typing import Any

import gradio as gr

from zoo.play.classifying import MOST_PASSES, USUAL_PASSES, classify, has_dropout
from zoo.play.events import LIVE, guarded
from zoo.play.examples import blank, example, is_blank
from zoo.play.fields import whole_number
from zoo.play.parts import NARROW, picture_editor, result_image


def add_classify(model: Any) -> None:
    """A canvas to draw on, the probabilities of all classes, and the picture that the model sees."""
    color = model.trained_on.preprocessing.background
    dark = sum(color) < 3 * 128
    empty = blank(model, color)
    greys = ["#ffffff", "#aaaaaa", "#555555", "#000000"]
    colors = greys if dark else greys[::-1]
    with gr.Row():
        with gr.Column(min_width=NARROW):
            gr.Markdown("Draw with the mouse, or upload a picture.")
            editor = picture_editor(empty, "Drawing", "draw", empty.size, max(8, min(empty.size) // 14), colors)
            with gr.Row():
                clear = gr.Button("Clear", elem_id="clear")
                number = gr.State(0)
                shown = gr.Button("Example", elem_id="example", visible=example(model, 0) is not None)
            passes = gr.Slider(
                0,
                MOST_PASSES,
                value=model.mc_samples or USUAL_PASSES if has_dropout(model) else 0,
                step=1,
                label="passes with dropout",
                info="number of passes with dropout on (Monte Carlo dropout); 0 for one pass with dropout off",
                visible=has_dropout(model),
                interactive=True,
            )
        with gr.Column(min_width=NARROW):
            label = gr.Label(label="Probabilities", num_top_classes=1000, elem_id="probabilities", show_heading=True)
            line = gr.Markdown(elem_id="uncertainty")
            gr.Markdown("What the model sees")
            seen = result_image("What the model sees", "seen", height=240)

    @guarded
    def answer(value: dict[str, Any] | None, passes: float) -> tuple[Any, ...]:
        picture = (value or {}).get("composite")
        if picture is None or is_blank(picture):
            return None, "", None
        found = classify(model, picture, whole_number("passes", passes))
        return found.probabilities, found.uncertainty, found.seen

    @guarded
    def next_example(number: int) -> tuple[Any, int]:
        found = example(model, number)
        assert found is not None  # or the button is not there
        return found.picture, number + 1

    # Also what the page itself puts into the editor is `input`, once the editor shows it.
    gr.on([editor.input, passes.release], answer, [editor, passes], [label, line, seen], **LIVE)
    gr.on([clear.click, editor.clear], lambda: empty, None, editor, **LIVE)
    shown.click(next_example, number, [editor, number], **LIVE)
