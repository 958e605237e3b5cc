"""Registration as a transform of MONAI (``.monai``) and of TorchIO (``.torchio``), and as a step of nipype
(``.nipype``) and of pydra (``.pydra``).
"""
