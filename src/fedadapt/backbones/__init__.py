"""Pretrained vision networks that stay frozen: built-in residual nets, any timm model, local weight files."""

from fedadapt.backbones.backbone import Backbone, BuildBackbone, content_digest
from fedadapt.backbones.module import wrap
from fedadapt.backbones.resnet import ResNet

__all__ = ["Backbone", "BuildBackbone", "ResNet", "content_digest", "wrap"]
