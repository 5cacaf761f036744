"""One way to change what a module does when it is called, which holds beside everything else that changes it.

Offload hooks replace a module's `forward`, and put back what they found there after each picture. Whatever was set on
the instance meanwhile is lost. A class of its own lies below all hooks, and it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Takes the module, what it would do by itself, and the arguments of the call.
Answer = Callable[..., Any]


def wrap_call(module: torch.nn.Module, answer: Answer) -> None:
    """Have `answer(module, compute, *arguments, **options)` answer the module's calls, outside of all hooks.

    An answer that does not call `compute` moves no weights. A module that is wrapped twice asks the last answer first.
    """
    wrap_method(module, "__call__", answer)


def wrap_forward(module: torch.nn.Module, answer: Answer) -> None:
    """The same inside of all hooks: weights lie on the device already."""
    wrap_method(module, "forward", answer)


def wrap_method(module: Any, method: str, answer: Answer) -> None:
    """Have `answer` answer a method of one object, by a class of its own under the name of the one that it has."""
    own = type(module)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return answer(self, getattr(super(wrapped, self), method), *arguments, **options)

    # transformers finds what a model can record by the text of its class, diffusers a configuration's by its name.
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    wrapped: type = type(own.__name__, (own,), {method: call, **names})
    module.__class__ = wrapped
