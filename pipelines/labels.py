"""Class ids and their names."""

import difflib
import operator
from collections.abc import Mapping

import torch

from demo_diffusion.checks import check_dense, is_whole, shown


class LabelNames:
    """Finds class ids by number or name.

    Args:
        id2label: {id: "name" or "name, synonym, …"}, ids as numbers or (from JSON) strings.
        num_classes: ids are 0 … num_classes − 1.

    Raises:
        ValueError: if id2label has an id out of range.
    """

    def __init__(self, id2label: Mapping[int | str, str] | None, num_classes: int):
        self.num_classes = num_classes
        try:
            self.id2label = {int(i): str(name) for i, name in dict(id2label or {}).items()}
        except (TypeError, ValueError):
            raise ValueError(f"id2label must be {{class id: name}}; got {id2label!r:.100}.") from None
        if outside := [i for i in self.id2label if not 0 <= i < num_classes]:
            raise ValueError(f"id2label names the classes {outside}; the network has 0 … {num_classes - 1}.")
        self._ids: dict[str, set[int]] = {}
        for class_id, names in self.id2label.items():
            for name in {names.strip(), *(synonym.strip() for synonym in names.split(","))}:
                self._ids.setdefault(name, set()).add(class_id)

    def unambiguous(self) -> dict[str, int]:
        """{name: id} of the names that stand for one class."""
        return {name: next(iter(ids)) for name, ids in sorted(self._ids.items()) if len(ids) == 1}

    def class_ids(self, labels: int | str | list[int | str] | torch.Tensor) -> list[int]:
        """Class ids of one or more ids or names.

        Raises:
            ValueError: if there is none, or one is unknown, ambiguous or out of range.
        """
        if isinstance(labels, Mapping | bytes):
            raise ValueError(f"class_labels is {shown(labels)}; give class ids or label names in a list.")
        if isinstance(labels, torch.Tensor):
            check_dense("class_labels", labels)
            labels = labels.tolist()
        if isinstance(labels, str) or not hasattr(labels, "__iter__"):
            labels = [labels]
        ids = [self._class_id(label) for label in labels]
        if not ids:
            raise ValueError("class_labels is empty; give at least one class id or label name.")
        return ids

    def _class_id(self, label: int | str) -> int:
        return self._id_of_name(label) if isinstance(label, str) else self._checked_id(label)

    def _id_of_name(self, name: str) -> int:
        if not self.id2label:
            raise ValueError(
                f"The label {name!r} was given, but this pipeline has no label names; use an id in "
                f"[0, {self.num_classes - 1}] or create the pipeline with id2label."
            )
        ids = self._ids.get(name.strip(), set())
        if not ids:
            close = difflib.get_close_matches(name, self._ids, n=3)
            hint = f"Did you mean {', '.join(map(repr, close))}?" if close else "See pipe.labels for all names."
            raise ValueError(f"Unknown label {name!r}. {hint}")
        if len(ids) > 1:
            raise ValueError(f"The label {name!r} stands for the classes {sorted(ids)}; use one of these ids.")
        return next(iter(ids))

    def _checked_id(self, class_id: int) -> int:
        if not is_whole(class_id):
            raise ValueError(f"Class label {shown(class_id)} is neither an integer nor a name.")
        class_id = operator.index(class_id)
        if not 0 <= class_id < self.num_classes:
            raise ValueError(
                f"Class id {class_id} is out of range; this network has the classes 0 … {self.num_classes - 1}. "
                "For unconditional samples use guidance_scale=0."
            )
        return class_id
