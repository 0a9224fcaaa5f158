"""The one place where what transformers and huggingface_hub raise while loading becomes a RewardError."""

from collections.abc import Iterator
from contextlib import contextmanager

from tpo_graph.errors import RewardError, TPOError

__all__ = ["loading_errors"]


@contextmanager
def loading_errors(name: str, *, revision: str | None, trust_remote_code: bool) -> Iterator[None]:
    """Map exceptions of a load.

    Args:
        name: the checkpoint, as the user gave it.
        revision: the revision asked for, or None.
        trust_remote_code: whether the checkpoint's own code may run.
    """
    from huggingface_hub import errors as hub
    from safetensors import SafetensorError

    try:
        yield
    except TPOError:
        raise
    except MemoryError as error:
        raise RewardError(f"Loading reward model {name!r} ran out of memory.", hint="Try dtype='bfloat16'.") from error
    # a checkpoint's own code may raise anything, and torch raises RuntimeError for sizes and memory alike
    except Exception as error:
        causes = list(_chain(error))

        def caused_by(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message, hint = f"Reward model {name!r} could not be loaded: {said}", ""
        if caused_by(hub.GatedRepoError):
            message = f"Reward model {name!r} is gated: its owner must grant you access first."
            hint = "Accept its terms on its page at huggingface.co, then log in with `hf auth login`."
        elif caused_by(hub.RevisionNotFoundError):
            message = f"Reward model {name!r} has no revision {revision!r}."
            hint = "Leave revision out for the newest one."
        elif caused_by(hub.RepositoryNotFoundError, hub.HFValidationError):
            message = f"Reward model {name!r} is neither a folder here nor a public repository on the Hugging Face hub."
            hint = "Check the spelling (hf:owner/name, or hf:./folder); a private repository needs `hf auth login`."
        elif caused_by(hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, ConnectionError) or "connect to" in said:
            message = f"Reward model {name!r} is not in the local cache, and the Hugging Face hub can't be reached."
            hint = "Check the network and HF_HUB_OFFLINE, or download it elsewhere and give the folder: hf:./folder."
        elif caused_by(hub.EntryNotFoundError) or "does not appear to have" in said:
            message = f"Reward model {name!r} lacks a file that is needed: {said}"
            hint = "A checkpoint holds config.json, the tokenizer's files and model.safetensors."
        elif isinstance(error, ImportError) and trust_remote_code:
            message = f"Reward model {name!r} brings its own code, which fails to import here: {said}"
            hint = (
                "It was written for another transformers version, which its config.json may name (ArmoRM is one such "
                "model). Serve it from an environment with that version, behind OpenRLHF's interface "
                "(openrlhf:URL#MODEL), or take a model without own code."
            )
            if "pip install" in said:  # it says itself what to do
                hint = "Or take a model without own code."
        elif "trust_remote_code" in str(error):
            message = f"Reward model {name!r} brings its own code, which is not run unless you trust it."
            hint = "Read that code, then pass trust_remote_code=True."
        elif caused_by(SafetensorError):
            message = f"The weights of reward model {name!r} can't be read: {said}"
            hint = "The file may be cut short; download it again."
        raise RewardError(message, hint=hint) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
