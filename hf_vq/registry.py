"""The tables that say which classes there are, by name; each is filled where its classes are defined."""

AUTOENCODERS = {}  # class
PRIORS = {}  # (config class, class)
PIPELINES = {}  # class
MODALITIES = {}  # Modality


def modality_of(class_name):
    """The modality of an autoencoder, by the name of its class; None for a class without one, or of others."""
    return MODALITIES.get(getattr(AUTOENCODERS.get(class_name), "modality", None))


def find_class(name):
    """The autoencoder or prior class of a name; None where there is none."""
    _, prior_class = PRIORS.get(name, (None, None))
    return AUTOENCODERS.get(name, prior_class)
