"""torchvision's DeepLabV3 and accelerate: several processes, or gradient accumulation over single images.

Needs torch, torchvision, accelerate and wsbcn_mmseg. Run: accelerate launch examples/torchvision_accelerate.py
"""
import argparse

# First: then a torchvision that was built for another torch can be imported too
from wsbcn_mmseg import convert_model, fold, follow_learning_rate
from wsbcn_mmseg.layers import HeldKernels

import torch
import torchvision
from accelerate import Accelerator
from drawn_shapes import DrawnShapes
from torch.nn import functional as F
from torch.utils.data import DataLoader


def build(example: torch.Tensor) -> torch.nn.Module:
    network = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=2)
    return convert_model(network, example)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=40, help='single-image steps (default: %(default)s)')
    parser.add_argument('--out', default='deeplabv3_bcn.pth', help='file for the weights (default: %(default)s)')
    args = parser.parse_args()
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    data = DrawnShapes(args.images)
    example = data[0][0][None]
    network = build(example)
    accelerator.print(network.conversion_report)

    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, args.images // 4))
    model, optimizer, scheduler, loader = accelerator.prepare(network, optimizer, scheduler,
                                                              DataLoader(data, batch_size=1, shuffle=True))
    follow_learning_rate(model, optimizer)
    kernels = HeldKernels(model)  # saves time: kernels are standardized once per optimizer step
    model.train()
    for images, labels in loader:
        with accelerator.accumulate(model):
            with kernels.micro_step(last=accelerator.sync_gradients):
                loss = F.cross_entropy(model(images)['out'], labels)
                accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    accelerator.print(f'Last loss: {loss.item():.3f}')

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model).cpu().eval()
        torch.save(trained.state_dict(), args.out)
        again = build(example)
        again.load_state_dict(torch.load(args.out, weights_only=True))
        folded = fold(again, example)  # stock layers only
        program = torch.export.export(folded, (example, ))
        difference = (program.module()(example)['out'] - trained(example)['out']).abs().max().item()
        print(f'Saved {args.out}; folded and exported, the logits differ by {difference:.1e}')
    accelerator.end_training()


if __name__ == '__main__':
    main()
