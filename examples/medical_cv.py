"""Four models of a breast-cancer table, each judged by five-fold cross-validation over patients with four metrics.

python examples/medical_cv.py [--models logistic,forest] [--seed 3]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

DATA = Path(os.environ.get("EXAMPLES_DATA") or f"/var/tmp/encore-examples-{os.getuid()}")
if not all((DATA / name).exists() for name in ("table.csv", "folds.json")):
    # In a process of its own and before the tracking begins: making the data is no part of the training.
    subprocess.run([sys.executable, str(Path(__file__).with_name("prepare_data.py")), str(DATA)], check=True)

import sdk  # noqa: E402

try:
    import numpy
    from sklearn import ensemble, linear_model, metrics, naive_bayes, pipeline, preprocessing, tree
except ModuleNotFoundError as missing:
    raise SystemExit(f"This example needs {missing.name}: run `make examples` in Encore's folder, or install it here.") from None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="examples")
    parser.add_argument("--name", default="medical-cv")
    parser.add_argument("--models", default="logistic,bayes,tree,forest")
    parser.add_argument("--rows", type=int, default=8000, help="of the table, from its beginning")
    parser.add_argument("--regularisation", type=float, default=1.0)
    parser.add_argument("--trees", type=int, default=30)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--fail-at", type=int, default=-1, help="raise an error at this fold")
    return parser.parse_args()


def model(name: str, config):
    scaled = preprocessing.StandardScaler()
    if name == "logistic":
        return pipeline.make_pipeline(scaled, linear_model.LogisticRegression(C=config["regularisation"], max_iter=500))
    if name == "bayes":
        return naive_bayes.GaussianNB()
    if name == "tree":
        return tree.DecisionTreeClassifier(max_depth=config["depth"], random_state=config["seed"])
    if name == "forest":
        return ensemble.RandomForestClassifier(config["trees"], max_depth=config["depth"], random_state=config["seed"], n_jobs=1)
    raise SystemExit(f"there is no model {name!r}; choose from logistic, bayes, tree, forest")


def main() -> None:
    args = parse()
    config = sdk.init(project=args.project, name=args.name, tags=["medical", "tabular"], config=vars(args)).config

    table = numpy.loadtxt(DATA / "table.csv", delimiter=",", skiprows=1, max_rows=config["rows"])
    folds = json.loads((DATA / "folds.json").read_text())
    patients, features, benign = table[:, 0].astype(int), table[:, 1:-1], table[:, -1].astype(int)
    fold_of_row = numpy.array(folds["fold_of_patient"])[patients]
    print(f"{len(table):,} rows of {len(set(patients.tolist()))} patients, {features.shape[1]} measurements")

    for name in config["models"].split(","):
        scores: dict[str, list[float]] = {}
        for fold in range(folds["folds"]):
            if fold == config["fail_at"]:
                raise RuntimeError(f"failing at fold {fold}, as asked")
            held_out = fold_of_row == fold
            fitted = model(name, config).fit(features[~held_out], benign[~held_out])
            odds = fitted.predict_proba(features[held_out])[:, 1]
            truth, guess = benign[held_out], odds >= 0.5
            values = {
                "accuracy": metrics.accuracy_score(truth, guess),
                "roc_auc": metrics.roc_auc_score(truth, odds),
                "f1": metrics.f1_score(truth, guess),
                "log_loss": metrics.log_loss(truth, odds),
            }
            sdk.log({f"{name}/{metric}": value for metric, value in values.items()}, step=fold)
            for metric, value in values.items():
                scores.setdefault(metric, []).append(float(value))
        print(f"{name:9s}" + "  ".join(f"{m} {numpy.mean(v):.4f} ± {numpy.std(v):.4f}" for m, v in scores.items()), flush=True)
    sdk.finish()


if __name__ == "__main__":
    main()
