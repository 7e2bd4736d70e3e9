"""The models: a file for each, whose ``get_config()`` returns the whole experiment.

They are imported as ``jaxdet.configs`` and named without folder and suffix: ``mask_rcnn_r50_fpn``.
"""
