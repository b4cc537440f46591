"""Functions of the page as Gradio calls them: one at a time, and a mistake is one line, as on the command line."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import torch

from zoo.errors import NonFiniteError, UserError, one_line

#: Of every event: one computation at a time in the whole program, and no entry in an API.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
#: Of events of sliders and of drawing: while one is computed, only the last of those that follow is kept.
LIVE: dict[str, Any] = {**ONE_AT_A_TIME, "trigger_mode": "always_last", "show_progress": "hidden"}


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a mistake of the user as a `gr.Error` of one line; a generator likewise."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*values: Any) -> Iterator[Any]:
            with explained():
                yield from function(*values)

        return generate

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        with explained():
            return function(*values)

    return call


@contextmanager
def explained() -> Iterator[None]:
    """Raises the errors that the command line answers in one line as `gr.Error`, without a traceback."""
    try:
        yield
    except (UserError, NonFiniteError) as error:
        raise _shown(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise _shown("this does not fit into the memory of the device: ask for less") from error


def _shown(message: str) -> gr.Error:
    # The page shows the message as HTML.
    return gr.Error(html.escape(one_line(message), quote=False), print_exception=False)
