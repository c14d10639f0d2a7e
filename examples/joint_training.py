"""Train one model on retrieval and similarity together, from Python: a short run on the sample data.

    pip install 'codiemb[bundled,train]'
    python examples/joint_training.py

Output (besides the progress on stderr):
    Spearman before 0.504, after 0.609, 8 steps
    0.938  这家网店回复慢，半天才理人。  问店主一句话，要等好久才搭腔。
    0.890  他俩的球技半斤八两。  打球要先热身。

`codiemb demo` makes the whole run; `codiemb train` reads the same recipe from a YAML file.
"""

import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from codiemb import LLMEmbeddingModel
from codiemb.training.recipe import parse_recipe
from codiemb.training.run import run

PAIRS = (("这家网店回复慢，半天才理人。", "问店主一句话，要等好久才搭腔。"), ("他俩的球技半斤八两。", "打球要先热身。"))

with tempfile.TemporaryDirectory() as folder, as_file(files("codiemb") / "sample_data") as data:
    recipe = parse_recipe(
        {
            "model": "bundled",
            "output": str(Path(folder) / "model"),
            "train": [{"path": str(data / "train" / "ir.jsonl")}, {"path": str(data / "train" / "sts.jsonl")}],
            "evaluation": {"data": [str(data / "test" / "sts.tsv")]},  # held out; measured before and after
            "tasks": {"ir": {"batch_size": 8, "negatives": 1}, "sts": {"batch_size": 24}},
            "sampling": {"task_shares": {"ir": 0.5, "sts": 0.5}},
            "optimizer": {"learning_rate": 1e-4},
            "max_steps": 8,
            "dropout": 0.0,
        }
    )
    report = run(recipe)
    print(f"Spearman before {report.before['sts']:.3f}, after {report.after['sts']:.3f}, {report.steps} steps")
    model = LLMEmbeddingModel(report.model)
    for first, second in PAIRS:
        print(f"{model.compute_similarity(first, second).item():.3f}  {first}  {second}")
