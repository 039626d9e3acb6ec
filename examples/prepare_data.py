"""Makes the two files that ``medical_cv.py`` reads, from scikit-learn's breast-cancer table; the same bytes each time.

    python examples/prepare_data.py [folder]

``table.csv``: 30,000 rows drawn with replacement from the 569 patients, each measurement with 3 % noise (over 9 MiB, so that Encore
fingerprints it and does not copy it). ``folds.json``: which of five folds each patient belongs to, so that no patient is on both sides.
"""

import json
import os
import sys
from pathlib import Path

ROWS, FOLDS, SEED = 30_000, 5, 2024


def folder() -> Path:
    return Path(os.environ.get("EXAMPLES_DATA") or f"/var/tmp/encore-examples-{os.getuid()}")


def main(where: Path) -> None:
    import numpy
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import StratifiedKFold

    table = load_breast_cancer()
    random = numpy.random.Generator(numpy.random.PCG64(SEED))
    patients = random.integers(0, len(table.target), ROWS)
    noise = random.normal(0.0, 0.03, (ROWS, table.data.shape[1])) * table.data.std(axis=0)
    values = table.data[patients] + noise
    where.mkdir(parents=True, exist_ok=True)
    names = [name.replace(" ", "_") for name in table.feature_names]
    write(where / "table.csv", _rows(names, patients, table.target, values))
    fold_of = [0] * len(table.target)
    for number, (_, held_out) in enumerate(StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(table.data, table.target)):
        for patient in held_out:
            fold_of[patient] = number
    write(where / "folds.json", [json.dumps({"folds": FOLDS, "fold_of_patient": fold_of}) + "\n"])


def _rows(names, patients, target, values):
    yield ",".join(["patient", *names, "benign"]) + "\n"
    for patient, row in zip(patients.tolist(), values.tolist(), strict=True):
        yield f"{patient}," + ",".join(f"{value:.8g}" for value in row) + f",{target[patient]}\n"


def write(path: Path, lines) -> None:
    """Whole or not at all, also when two trainings start at once."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    aside.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else folder())
