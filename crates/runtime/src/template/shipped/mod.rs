//! The templates that come with the crate.

/// Names and texts: `torch.nn` first, which the others are written in.
pub(super) const FILES: &[(&str, &str)] = &[
    ("nn.template", include_str!("nn.template")),
    ("misc.template", include_str!("misc.template")),
    ("resnet.template", include_str!("resnet.template")),
    ("vgg.template", include_str!("vgg.template")),
    ("mobilenetv2.template", include_str!("mobilenetv2.template")),
    ("mobilenetv3.template", include_str!("mobilenetv3.template")),
    ("convnext.template", include_str!("convnext.template")),
    ("vit.template", include_str!("vit.template")),
    ("timm_vit.template", include_str!("timm_vit.template")),
];
