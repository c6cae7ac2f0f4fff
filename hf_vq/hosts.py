"""What stands behind our mixins among the bases, for a type checker: at run time they have no base of their own."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
    from torch import nn
    from transformers import PreTrainedModel

    class ModelHost(ModelMixin, ConfigMixin):
        config: Any

    class PriorHost(PreTrainedModel):
        config: Any

    class PipelineHost(DiffusionPipeline):
        config: Any

    ModuleHost = nn.Module
else:
    ModelHost = PriorHost = PipelineHost = ModuleHost = object
