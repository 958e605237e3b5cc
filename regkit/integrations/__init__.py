"""Registration as a transform of MONAI (:mod:`regkit.integrations.monai`) and of TorchIO (``.torchio``)."""
