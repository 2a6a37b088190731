"""What a GPU can do: one large product in float32, as torch computes it by default."""

import torch

from sim.workload import order, report, timed

WIDE = 8192


def main() -> None:
    device = order()["device"]
    a, b, c = (torch.randn(WIDE, WIDE, device=device) for _ in range(3))
    seconds = timed(lambda number: torch.mm(a, b, out=c), device)
    report(seconds, tflops=2 * WIDE**3 / sorted(seconds)[len(seconds) // 2] / 1e12, name=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
