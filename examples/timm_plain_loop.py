"""timm and a plain training loop: single images, gradients accumulated over four of them.

Needs torch, timm and wsbcn_mmseg. Run: python examples/timm_plain_loop.py
"""
import argparse

# First: then a torchvision that was built for another torch can be imported too
from wsbcn_mmseg import convert_model, fold, follow_learning_rate
from wsbcn_mmseg.layers import HeldKernels

import timm
import torch
from drawn_shapes import DrawnShapes
from torch.nn import functional as F


def build(example: torch.Tensor) -> torch.nn.Module:
    """A classifier: is the rectangle wider than high?"""
    return convert_model(timm.create_model('resnet10t', num_classes=2), example)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=40, help='single-image steps (default: %(default)s)')
    parser.add_argument('--out', default='resnet10t_bcn.pth', help='file for the weights (default: %(default)s)')
    args = parser.parse_args()
    torch.manual_seed(0)
    data = DrawnShapes(args.images)
    example = data[0][0][None]
    model = build(example)
    print(model.conversion_report)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, args.images // 4))
    follow_learning_rate(model, optimizer)
    kernels = HeldKernels(model)  # saves time: kernels are standardized once per optimizer step
    model.train()
    for step, (image, label) in enumerate(data, 1):
        wide = (label.any(0).sum() > label.any(1).sum()).long()
        with kernels.micro_step(last=step % 4 == 0):
            loss = F.cross_entropy(model(image[None]), wide[None]) / 4
            loss.backward()
        if step % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    print(f'Last loss: {4 * loss.item():.3f}')

    torch.save(model.state_dict(), args.out)
    again = build(example)
    again.load_state_dict(torch.load(args.out, weights_only=True))
    folded = fold(again, example)  # stock layers only
    program = torch.export.export(folded, (example, ))
    difference = (program.module()(example) - model.eval()(example)).abs().max().item()
    print(f'Saved {args.out}; folded and exported, the logits differ by {difference:.1e}')


if __name__ == '__main__':
    main()
