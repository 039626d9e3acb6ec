"""The real Trainer, the real Lightning, the real Accelerator, run as users run them, log through our plug-ins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from helpers import Shop, until
from server import Server

QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed; make's frameworks stage brings it")


def checked(shop: Shop, server: Server, program: str, **env: str) -> str:
    done = shop.run(program, server, **QUIET, **env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert until(lambda: server.finishes())
    return done.stdout


def config_of(server: Server) -> dict:
    found: dict = {}
    for doc in server.docs("config"):
        found = {**found, **doc["value"]} if doc["update"] else dict(doc["value"])
    return found


def checkpoints(server: Server) -> list[str]:
    return [doc["data"]["path"] for doc in server.docs("event", "checkpoint")]


TRAINER = """
    import sys, torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    import sdk
    from sdk.integrations.transformers import EncoreCallback

    class Words(torch.utils.data.Dataset):
        def __len__(self): return 16
        def __getitem__(self, i):
            ids = torch.arange(8) % 7 + i % 3
            return {"input_ids": ids, "labels": ids}

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    arguments = TrainingArguments("out", max_steps=6, logging_steps=2, save_steps=3, eval_strategy="steps", eval_steps=3, report_to=[],
                                  per_device_train_batch_size=4, use_cpu=True, learning_rate=0.01, run_name="tiny", disable_tqdm=True)
    if len(sys.argv) > 1:
        sdk.init(project="mine", config={"learning_rate": "as the user says"})
    callback = EncoreCallback(project="hf")
    trainer = Trainer(model=model, args=arguments, train_dataset=Words(), eval_dataset=Words(), callbacks=[callback])
    trainer.train()
    trainer.evaluate()
    assert sdk.current() is not None, "train() must not end the run: evaluate() comes after"
    print(sdk.current().id)
"""


@needs("transformers", "accelerate")
def test_the_transformers_trainer_logs_its_steps_arguments_and_checkpoints(shop: Shop, server: Server) -> None:
    """Keys and steps of the Trainer, the arguments and the model in the config, an event a checkpoint, finished with the program."""
    checked(shop, server, TRAINER)
    assert [step for step, _ in server.points("train/loss")] == [2, 4, 6]
    assert [step for step, _ in server.points("eval/loss")] == [3, 6, 6]
    assert [step for step, _ in server.points("train/learning_rate")] == [2, 4, 6]
    config = config_of(server)
    assert (config["max_steps"], config["model"]["n_embd"], config["learning_rate"]) == (6, 8, 0.01)
    assert [Path(path).name for path in checkpoints(server)] == ["checkpoint-3", "checkpoint-6"]
    assert all(Path(path).is_dir() for path in checkpoints(server))
    (about,) = [one for one in server.writers.values() if one["kind"] == "trainer"]
    assert (about["run"]["project"], about["run"]["name"]) == ("hf", "tiny")
    assert "train/train_loss" in {key for doc in server.docs("summary") for key in doc["values"]}
    (finish,) = server.finishes().values()
    assert finish["state"] == "finished"


@needs("transformers", "accelerate")
def test_the_callback_logs_into_a_run_that_the_user_began_and_leaves_his_words_alone(shop: Shop, server: Server) -> None:
    """One run, the user's project, his config stands, nothing is ended before the program ends."""
    done = shop.run(TRAINER, server, arguments=("mine",), **QUIET)
    assert done.returncode == 0, done.stderr[-3000:]
    assert until(lambda: server.finishes())
    assert {one["run"]["project"] for one in server.writers.values()} == {"mine"}
    assert config_of(server)["learning_rate"] == "as the user says"
    assert config_of(server)["max_steps"] == 6
    assert len(server.points("train/loss")) == 3


@needs("lightning")
def test_lightning_logs_by_its_logger(shop: Shop, server: Server) -> None:
    """Two epochs and a test: metrics at Lightning's steps, hparams, checkpoints with score; one run through fit and test."""
    checked(
        shop,
        server,
        """
        import torch, lightning.pytorch as pl
        from lightning.pytorch.callbacks import ModelCheckpoint
        from sdk.integrations.lightning import EncoreLogger
        import sdk

        class Tiny(pl.LightningModule):
            def __init__(self, lr=0.1, width=2):
                super().__init__()
                self.save_hyperparameters()
                self.layer = torch.nn.Linear(2, 1)
            def training_step(self, batch, _):
                loss = self.layer(batch).pow(2).mean()
                self.log("train/loss", loss, on_step=True)
                return loss
            def validation_step(self, batch, _):
                self.log("val/loss", self.layer(batch).pow(2).mean())
            def test_step(self, batch, _):
                self.log("test/loss", self.layer(batch).pow(2).mean())
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

        data = torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)
        logger = EncoreLogger(project="lit", name="tiny")
        saver = ModelCheckpoint(monitor="val/loss", save_top_k=1, dirpath="checkpoints")
        trainer = pl.Trainer(max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=[saver], accelerator="cpu",
                             enable_progress_bar=False, enable_model_summary=False)
        trainer.fit(Tiny(), data, data)
        trainer.test(trainer.model, data, verbose=False)
        assert logger.version == sdk.current().id and logger.name == "lit"
        logger.experiment.summary["seen"] = True
        """,
    )
    assert [step for step, _ in server.points("train/loss")] == list(range(8))
    assert [step for step, _ in server.points("val/loss")] == [3, 7]
    assert len(server.points("test/loss")) == 1
    assert [value for _, value in server.points("epoch")][:8] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert {name: config_of(server)[name] for name in ("lr", "width")} == {"lr": 0.1, "width": 2}
    found = [doc["data"] for doc in server.docs("event", "checkpoint")]
    assert found
    assert all(one["monitor"] == "val/loss" and isinstance(one["score"], float) and one["path"].endswith(".ckpt") for one in found)
    assert {one["run"]["name"] for one in server.writers.values()} == {"tiny"}
    assert [one["state"] for one in server.finishes().values()] == ["finished"]


ACCELERATE = """
    import sys, sdk
    from accelerate import Accelerator
    from sdk.integrations.accelerate import EncoreTracker
    mine = sdk.init(project="mine") if "mine" in sys.argv else None
    accelerator = Accelerator(log_with="encore" if "name" in sys.argv else [EncoreTracker(project="acc")], cpu=True)
    accelerator.init_trackers("acc", config={"lr": 0.5})
    for step in range(5):
        accelerator.log({"loss": 1.0 / (step + 1), "phase": "warm"}, step=step)
    run = accelerator.get_tracker("encore", unwrap=True)
    accelerator.end_training()
    assert run.finished == (mine is None), "end_training ends the run it began, and no other"
    if mine: sdk.log({"after": 1.0})
"""


@needs("accelerate")
@pytest.mark.parametrize("words", [("name",), ("mine",)], ids=["by name", "an instance in the user's run"])
def test_accelerate_logs_by_its_tracker(shop: Shop, server: Server, words: tuple[str, ...]) -> None:
    """Points at the steps given, the config, texts as notes; end_training ends a run that the tracker began, never the user's."""
    if "name" in words:
        tracking = pytest.importorskip("accelerate.tracking")
        if not hasattr(tracking, "register_tracker_class"):
            pytest.skip("this accelerate has no register of trackers")
    done = shop.run(ACCELERATE, server, arguments=words, **QUIET)
    assert done.returncode == 0, done.stderr[-3000:]
    assert until(lambda: server.finishes())
    assert server.points("loss") == [(step, 1.0 / (step + 1)) for step in range(5)]
    assert config_of(server)["lr"] == 0.5
    assert {doc["data"]["phase"] for doc in server.docs("event", "note")} == {"warm"}
    assert {one["run"]["project"] for one in server.writers.values()} == {"mine" if "mine" in words else "acc"}
    assert bool(server.points("after")) == ("mine" in words)


def test_the_package_imports_no_framework(shop: Shop) -> None:
    """`import sdk.integrations` loads none of them."""
    done = shop.run(
        """
        import sys, sdk, sdk.integrations
        assert not {"transformers", "lightning", "pytorch_lightning", "accelerate", "torch"} & set(sys.modules)
        """
    )
    assert done.returncode == 0, done.stderr
