"""Registries of the scope ``wsbcn_mmseg``. MMEngine imports this module by its name, and uses this scope for parts that
a config inherits by ``_base_ = 'wsbcn_mmseg::voc/deeplabv3_r101_bcn_ws_voc.py'``.

The scope has no names of its own. Names in its configs belong to the scope in which they run, such as ``mmseg``.
"""
import mmengine.registry
from mmengine.registry import DefaultScope, Registry

SCOPE = 'wsbcn_mmseg'


class RunScopeRegistry(Registry):
    """Looks up names in the registry of the run's own scope."""

    def get(self, key: str):
        """The class or function that is registered under a name; None if there is none."""
        scopes = [instance.scope_name for instance in DefaultScope._instance_dict.values()]
        scope = next((scope for scope in reversed(scopes) if scope != SCOPE), 'mmseg')
        with self.parent.switch_scope_and_registry(scope) as registry:
            return registry.get(key)


for _registry in [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]:
    RunScopeRegistry(_registry.name, parent=_registry, scope=SCOPE)
