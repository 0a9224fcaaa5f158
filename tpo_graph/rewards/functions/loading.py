"""Reward functions by name: what `load_reward` calls for `python:`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo_graph.errors import ConfigurationError, TPOError
from tpo_graph.rewards.functions import FunctionReward

if TYPE_CHECKING:
    from tpo_graph.rewards.base import RewardModel

__all__ = ["load_function"]


def load_function(name: str, **options: Any) -> "RewardModel":  # Any: options are those of `FunctionReward`
    """What `load_reward("python:MODULE:FUNCTION")` and `"python:FILE.py:FUNCTION"` call.

    This runs the module. The working directory counts as a place of modules, as it does for `python -m`. What the name
    stands for may also be a reward model, or a class of one that takes the options.

    Raises:
        ConfigurationError: there is no such module or function, or the module raises when it is imported, or the class
            when it is made.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ConfigurationError(
            f"'python:{name}' names no function.", hint='Write "python:module:function" or "python:file.py:function".'
        )
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigurationError(f"Module {place!r} has nothing named {attribute!r}.")
    model: RewardModel
    if isinstance(found, type) and hasattr(found, "score"):
        try:
            model = found(**options)
        except TPOError:
            raise
        except Exception as error:  # whatever a user's class may raise
            raise ConfigurationError(f"{name!r} can't be made: {type(error).__name__}: {error}".rstrip(": ")) from error
        return model
    if hasattr(found, "score"):
        if options:
            raise ConfigurationError(f"{name!r} is a reward model already and takes no options: {', '.join(options)}.")
        model = found
        return model
    return FunctionReward(found, **options)


def _import_module(name: str) -> Any:  # Any: a module has any attributes
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"There is no module {name!r}, neither installed nor in {here!r}.") from error
        raise ConfigurationError(f"Module {name!r} can't be imported: {error}.") from error
    except Exception as error:  # whatever a user's module may raise
        raise ConfigurationError(f"Module {name!r} can't be imported: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)


def _import_file(path: Path) -> Any:  # Any: as above
    if not path.is_file():
        raise ConfigurationError(f"There is no file {str(path)!r}.")
    spec = importlib.util.spec_from_file_location(f"tpo_graph_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{str(path)!r} can't be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a class's module up by name
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        del sys.modules[spec.name]
        raise ConfigurationError(f"{str(path)!r} can't be imported: {type(error).__name__}: {error}") from error
    return module
