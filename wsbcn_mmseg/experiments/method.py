"""The methods that experiments compare."""
import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """A combination of norm and convolution, with its name in tables.

    Attributes:
        name: Name as in the paper's tables.
        norm_cfg: Config of the norm.
        conv_cfg: Config of the convolutions before the norm; None for ordinary ones.
        single: Settings of the norm that differ if an update has one image.
        activates: Whether the norm contains the activation (:mod:`wsbcn_mmseg.layers.norm_act`).
        several_values: Whether the norm needs several values per channel. If so, and if an update has one image, it is
            omitted in the pooling branch of the segmentation head, whose maps have one position.
    """
    name: str
    norm_cfg: dict = field(hash=False)
    conv_cfg: dict | None = field(default=None, hash=False)
    single: dict = field(default_factory=dict, hash=False)
    activates: bool = False
    several_values: bool = False

    @property
    def file_name(self) -> str:
        return file_name(self.name)

    def settings(self, batch: int, parts: tuple[str, ...] = ('backbone', ), backbone: str = 'CIFARResNet') -> dict:
        """Settings for a config without norms, with dotted keys as for ``Config.merge_from_dict``.

        Args:
            batch: Images per update.
            parts: Parts of the model. Defaults to the backbone only.
            backbone: Class of the backbone. Defaults to ``'CIFARResNet'``.
        """
        norm = self.norm_cfg | (self.single if batch == 1 else {})
        settings = {}
        for part in parts:
            settings |= {f'model.{part}.norm_cfg.{key}': value for key, value in norm.items()}
            settings |= {f'model.{part}.conv_cfg.{key}': value for key, value in (self.conv_cfg or {}).items()}
            if self.activates and part == 'backbone':
                settings['model.backbone.type'] = f'NormAct{backbone}'
            elif self.activates:
                settings[f'model.{part}.act_cfg'] = None
        return settings

    def segmentor_settings(self, batch: int) -> dict:
        """:meth:`settings` for the backbone and head of a small DeepLabV3 in ``_base_/mini_voc.py`` or
        ``_base_/camvid_deeplabv3_r18.py``."""
        settings = self.settings(batch, ('backbone', 'decode_head'), 'ResNet')
        if self.several_values and batch == 1:
            settings['model.decode_head.pool_norm'] = False
        if self.norm_cfg['type'] == 'BCN':
            settings['custom_hooks.0.type'] = 'BCNUpdateRateHook'
        return settings


def file_name(text: str) -> str:
    """Lower-case letters and digits; other characters become underscores."""
    return re.sub('[^a-z0-9]+', '_', text.lower())


def options(settings: dict) -> tuple[str, ...]:
    """Settings as ``--cfg-options`` of ``tools/train.py``."""
    return tuple(f'{key}={value}' for key, value in settings.items())


def methods(min_channels_per_group: int = 2) -> dict[str, Method]:
    """All methods by name; to add a norm, add a row here.

    BCN uses large-batch mode if an update has several images, and Algorithm 1 if it has one.

    Args:
        min_channels_per_group: Minimum for every norm with groups. Defaults to 2, as for BCN.
    """
    width = dict(min_channels_per_group=min_channels_per_group)
    ws, gn = dict(type='ConvWS'), dict(type='GNByWidth', **width)
    bcn, micro = dict(type='BCN', mode='large_batch', **width), dict(mode='micro_batch')
    rows = [
        Method('BN', dict(type='BN'), several_values=True),
        Method('GN', gn),
        Method('GN+WS', gn, ws),
        Method('LN', dict(type='GN', num_groups=1)),
        Method('LN+WS', dict(type='GN', num_groups=1), ws),
        Method('BCN', bcn, single=micro),
        Method('BCN+WS', bcn, ws, single=micro),
        Method('BCN+WS, Algorithm 1', bcn | micro, ws),
        Method('SN', dict(type='SwitchableNorm'), single=dict(batch_statistics=False)),
        Method('EvoNorm-S0', dict(type='EvoNormS0', **width), activates=True),
        Method('FRN+TLU', dict(type='FRN', learn_eps=True), activates=True),
    ]
    return {row.name: row for row in rows}
