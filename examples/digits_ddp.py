"""A classifier of handwritten digits, trained by several processes at once with torch's DDP over gloo. One run, each rank logs its loss.

    torchrun --nproc-per-node 2 examples/digits_ddp.py [--lr 0.05] [--epochs 12]

Run plainly (``python examples/digits_ddp.py``) it trains in one process.
"""

import argparse
import os
import time

import sdk

try:
    import torch
    import torch.distributed as dist
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    raise SystemExit(f"This example needs {missing.name}: run `make examples` in Encore's folder, or install it here.") from None
from torch import nn
from torch.nn import functional as F


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="examples")
    parser.add_argument("--name", default="digits-ddp")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32, help="per process")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--fail-at", type=int, default=-1, help="raise an error at this epoch")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to rest after each step, to watch it live")
    return parser.parse_args()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def main() -> None:
    args = parse()
    config = sdk.init(project=args.project, name=args.name, tags=["vision", "ddp"], config=vars(args)).config
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(config["seed"])
    torch.set_num_threads(1)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    held_out = len(labels) // 5
    validation, training = (images[:held_out], labels[:held_out]), (images[held_out:], labels[held_out:])

    model = network()
    replica = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(replica.parameters(), lr=config["lr"], momentum=config["momentum"])

    step = 0
    for epoch in range(config["epochs"]):
        if epoch == config["fail_at"]:
            raise RuntimeError(f"failing at epoch {epoch}, as asked")
        # Every rank shuffles alike and takes its own share.
        mixed = torch.randperm(len(training[1]), generator=torch.Generator().manual_seed(1000 * config["seed"] + epoch))
        mine = mixed[rank : len(mixed) // world * world : world]
        for chosen in mine.split(config["batch"]):
            loss = F.cross_entropy(replica(training[0][chosen]), training[1][chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            sdk.log({"train/loss": loss.item(), "epoch": epoch}, step=step)
            step += 1
            time.sleep(config["pause"])
        if rank == 0:
            with torch.no_grad():
                logits = model(validation[0])
            accuracy = (logits.argmax(1) == validation[1]).double().mean().item()
            sdk.log({"val/accuracy": accuracy, "val/loss": F.cross_entropy(logits, validation[1]).item()}, step=step - 1)
            print(f"epoch {epoch:3d}  loss {loss.item():.4f}  validation accuracy {accuracy:.3f}", flush=True)

    if world > 1:
        dist.destroy_process_group()
    sdk.finish()


if __name__ == "__main__":
    main()
