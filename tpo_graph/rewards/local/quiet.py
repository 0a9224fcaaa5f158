"""Keeps transformers and huggingface_hub from writing to the terminal while a checkpoint loads."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_loading"]

# the switches are the libraries' own and belong to the process: two loads at once would restore each other's state
_LOADING = threading.RLock()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars, log lines or warnings inside; everything is as before afterwards.

    What the log lines would tell (missing weights, code that is not trusted) is checked by the loader and raised.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bars = transformers_logging.is_progress_bar_enabled()
        levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in the library
        transformers_logging.set_verbosity(logging.CRITICAL)
        hub_logging.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            transformers_logging.set_verbosity(levels[0])
            hub_logging.set_verbosity(levels[1])
            if bars:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in the library
