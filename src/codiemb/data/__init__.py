"""Labelled texts: the unified format, its readers and writers, and converters from other formats."""

from codiemb.data.examples import TASK_TYPES, DataError, Example, TaskType, Text, parse_example
from codiemb.data.readers import TaskTable, read
from codiemb.data.writers import write_examples

__all__ = [
    "TASK_TYPES",
    "DataError",
    "Example",
    "TaskTable",
    "TaskType",
    "Text",
    "parse_example",
    "read",
    "write_examples",
]
