"""Every autoencoder's transformers face: a config with named fields and a PreTrainedModel around the same module."""

import inspect

from transformers import PreTrainedConfig, PreTrainedModel

from hf_vq.autoencoders.images.dvae import DVAE
from hf_vq.autoencoders.images.magvit2 import MAGVIT2Model
from hf_vq.autoencoders.images.rqvae import RQVAE
from hf_vq.autoencoders.images.vit_vq_model import ViTVQModel
from hf_vq.autoencoders.images.vq_model import VQModel
from hf_vq.autoencoders.images.vqvae import VQVAE
from hf_vq.autoencoders.images.vqvae2 import VQVAE2
from hf_vq.hub import HubConfigMixin, PushMixin
from hf_vq.renaming import warn_renamed, with_new_names


class AutoencoderConfig(HubConfigMixin, PreTrainedConfig):
    """Base of the configs: the fields are the arguments of the autoencoder's constructor.

    Class attributes:
        autoencoder_class: the ModelMixin that the fields build.
    """

    autoencoder_class = None

    def __post_init__(self, **kwargs):
        renamed = self.autoencoder_class.renamed_options() if self.autoencoder_class else {}
        given = with_new_names(kwargs, renamed, type(self).__name__)
        for old, name in renamed.items():
            if name in given:
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{type(self).__name__}: {old} and {name} are one option, got both")
                setattr(self, name, given.pop(name))
        super().__post_init__(**given)

    def __setattr__(self, name, value):
        super().__setattr__(self._new_name(name) or name, value)

    def __getattr__(self, name):  # where there is no field of that name
        new = type(self)._new_name(name)
        if new is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self, new)

    @classmethod
    def _new_name(cls, name):
        """What an old name of an option is called now, which it says once; None for any other name."""
        new = cls.autoencoder_class.renamed_options().get(name) if cls.autoencoder_class else None
        if new is not None:
            warn_renamed(cls.__name__, name, new)
        return new

    def autoencoder_arguments(self):
        names = list(inspect.signature(self.autoencoder_class.__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}


class AutoencoderForAutoModel(PushMixin, PreTrainedModel):
    """An autoencoder as a transformers model; `autoencoder` is the diffusers ModelMixin itself.

    It loads and saves the same folder: `config.json` and `diffusion_pytorch_model.safetensors`.
    """

    base_model_prefix = "autoencoder"
    main_input_name = "sample"
    _keep_in_fp32_modules_strict = ["quantize", "quantizer", "quantizers"]

    def __init__(self, config, autoencoder=None):
        super().__init__(config)
        self.autoencoder = autoencoder or config.autoencoder_class(**config.autoencoder_arguments())
        self.integer_buffers = {
            name: buffer.dtype for name, buffer in self.autoencoder.named_buffers() if not buffer.is_floating_point()
        }
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for name, dtype in model.integer_buffers.items():  # `dtype=` makes float32 of those in a quantizer
            owner, _, leaf = name.rpartition(".")
            module = model.autoencoder.get_submodule(owner)
            setattr(module, leaf, getattr(module, leaf).to(dtype))
        model.autoencoder.finish_loading([name.removeprefix("autoencoder.") for name in info["missing_keys"]])
        model.autoencoder.load_processor(pretrained_model_name_or_path, **kwargs)
        return (model, info) if output_loading_info else model

    @classmethod
    def from_autoencoder(cls, autoencoder):
        """The face of an autoencoder that exists: the same module, no copy."""
        fields = cls.config_class().autoencoder_arguments()
        return cls(cls.config_class(**{name: autoencoder.config[name] for name in fields}), autoencoder)

    def save_pretrained(self, save_directory, **kwargs):
        self.autoencoder.save_pretrained(save_directory, **kwargs)

    def _init_weights(self, module):
        """The autoencoder initialised itself when it was built."""

    def forward(self, sample, padding_mask=None):
        return self.autoencoder(sample, padding_mask=padding_mask)

    def encode(self, sample):
        return self.autoencoder.encode(sample)

    def decode(self, latents):
        return self.autoencoder.decode(latents)

    def tokenize(self, sample, padding_mask=None, **options):
        return self.autoencoder.tokenize(sample, padding_mask, **options)

    def detokenize(self, codes, **options):
        return self.autoencoder.detokenize(codes, **options)


def make_face(autoencoder_class):
    """Config class and model class of an autoencoder class, with the constructor's arguments as fields.

    Returns:
        `<Name>Config` and `<Name>ForAutoModel`.
    """
    name, parameters = autoencoder_class.__name__, inspect.signature(autoencoder_class.__init__).parameters
    fields = {key: parameter for key, parameter in parameters.items() if key != "self"}
    config_class = type(
        f"{name}Config",
        (AutoencoderConfig,),
        {
            "__module__": __name__,
            "__doc__": f"Config of `{name}ForAutoModel`: the arguments of `{name}`.",
            "__annotations__": {key: parameter.annotation for key, parameter in fields.items()},
            "model_type": autoencoder_class.face_type,
            "autoencoder_class": autoencoder_class,
            **{key: parameter.default for key, parameter in fields.items()},
        },
    )
    model_class = type(
        f"{name}ForAutoModel",
        (AutoencoderForAutoModel,),
        {"__module__": __name__, "__doc__": f"`{name}` as a transformers model.", "config_class": config_class},
    )
    return config_class, model_class


FACES = {
    autoencoder_class: make_face(autoencoder_class)
    for autoencoder_class in (DVAE, MAGVIT2Model, RQVAE, ViTVQModel, VQModel, VQVAE, VQVAE2)
}
DVAEConfig, DVAEForAutoModel = FACES[DVAE]
MAGVIT2ModelConfig, MAGVIT2ModelForAutoModel = FACES[MAGVIT2Model]
RQVAEConfig, RQVAEForAutoModel = FACES[RQVAE]
ViTVQModelConfig, ViTVQModelForAutoModel = FACES[ViTVQModel]
VQModelConfig, VQModelForAutoModel = FACES[VQModel]
VQVAEConfig, VQVAEForAutoModel = FACES[VQVAE]
VQVAE2Config, VQVAE2ForAutoModel = FACES[VQVAE2]
