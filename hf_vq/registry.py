"""Tables of classes by name, which every room may read: what is put in is found wherever a name is looked up."""

# name: (config class, prior class). `hf_vq.auto.register()` makes transformers' Auto classes know a new entry too.
PRIORS: dict[str, tuple[type, type]] = {}
