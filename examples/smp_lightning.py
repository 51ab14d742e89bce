"""segmentation_models_pytorch and Lightning: the update rate by a callback of three lines.

Needs torch, segmentation-models-pytorch, lightning and wsbcn_mmseg. Run: python examples/smp_lightning.py
"""
import argparse
import warnings

# First: then a torchvision that was built for another torch can be imported too
from wsbcn_mmseg import convert_model, fold, follow_learning_rate

import lightning
import segmentation_models_pytorch as smp
import torch
from drawn_shapes import DrawnShapes
from torch.nn import functional as F
from torch.utils.data import DataLoader


class FollowLearningRate(lightning.Callback):

    def on_fit_start(self, trainer, module):
        follow_learning_rate(module.network, trainer.optimizers)


class Segmentation(lightning.LightningModule):

    def __init__(self, images: int):
        super().__init__()
        network = smp.Unet('resnet18', encoder_weights=None, classes=2, decoder_channels=(64, 32, 16, 16, 16))
        self.network = convert_model(network, torch.randn(1, 3, 64, 64))
        self.images = images

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.images)
        return [optimizer], [dict(scheduler=scheduler, interval='step')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=40, help='single-image steps (default: %(default)s)')
    parser.add_argument('--out', default='unet_bcn.pth', help='file for the weights (default: %(default)s)')
    args = parser.parse_args()
    warnings.filterwarnings('ignore', module='lightning')
    lightning.seed_everything(0)
    module = Segmentation(args.images)
    print(module.network.conversion_report)
    trainer = lightning.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False,
                                callbacks=[FollowLearningRate()])
    trainer.fit(module, DataLoader(DrawnShapes(args.images), batch_size=1))

    torch.save(module.network.state_dict(), args.out)
    again = Segmentation(args.images).network
    again.load_state_dict(torch.load(args.out, weights_only=True))
    image, label = DrawnShapes(args.images + 1)[args.images]
    folded = fold(again, image[None])  # stock layers only
    program = torch.export.export(folded, (image[None], ))
    logits = module.network.eval()(image[None])
    difference = (program.module()(image[None]) - logits).abs().max().item()
    print(f'{(logits.argmax(1) == label).float().mean():.0%} of the pixels of a new image are right')
    print(f'Saved {args.out}; folded and exported, the logits differ by {difference:.1e}')


if __name__ == '__main__':
    main()
