"""Training: recipes, the trainer, whole runs. Needs the extra `train`."""

from importlib.util import find_spec

if missing := [name for name in ("accelerate", "tensorboard") if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"Training needs {' and '.join(missing)}. Install them with: pip install 'codiemb[train]'"
    )
