"""Registries of the scope ``wsbcn_mmseg``, in which MMEngine builds what a config takes over by
``_base_ = 'wsbcn_mmseg::voc/deeplabv3_r101_bcn_ws_voc.py'``; MMEngine imports this module by its name.

This package has no names of its own: its configs mean those of the scope in which they run, such as ``mmseg``.
"""
import mmengine.registry
from mmengine.registry import DefaultScope, Registry

SCOPE = 'wsbcn_mmseg'


class RunScopeRegistry(Registry):
    """Finds what the registry of the run's own scope finds."""

    def get(self, key: str):
        """The class or function registered under a name; None if there is none."""
        scopes = [instance.scope_name for instance in DefaultScope._instance_dict.values()]
        scope = next((scope for scope in reversed(scopes) if scope != SCOPE), 'mmseg')
        with self.parent.switch_scope_and_registry(scope) as registry:
            return registry.get(key)


for _registry in [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]:
    RunScopeRegistry(_registry.name, parent=_registry, scope=SCOPE)
