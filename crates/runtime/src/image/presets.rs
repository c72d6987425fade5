//! torchvision's transforms by the names of its weights: `weights.transforms()` of every classification model of 0.29.

use super::filter::Interpolation::{self, Bicubic, Bilinear};
use super::spec::{Crop, Preprocess, Resize};
use Numbers::{Half, Imagenet, Vgg};

/// Means and deviations that occur.
#[derive(Debug, Clone, Copy)]
enum Numbers {
    Imagenet,
    Half,
    /// `VGG16_Weights.IMAGENET1K_FEATURES`: means of its own, bytes as they are.
    Vgg,
}

/// Model, weights, resize, crop, filter, numbers; a model's default weights come first.
type Row = (&'static str, &'static str, usize, usize, Interpolation, Numbers);

/// `MODEL` or `MODEL.WEIGHTS`.
pub(super) fn torchvision(name: &str) -> Result<Preprocess, String> {
    let (model, weights) = match name.split_once('.') {
        Some((model, weights)) => (model, Some(weights)),
        None => (name, None),
    };
    let mut rows = TABLE.iter().filter(|row| row.0 == model).peekable();
    if rows.peek().is_none() {
        let families = "alexnet, convnext_*, densenet*, efficientnet_*, googlenet, inception_v3, maxvit_t, mnasnet*, mobilenet_*,                         regnet_*, resnet*, resnext*, shufflenet_v2_*, squeezenet*, swin_*, vgg*, vit_*, wide_resnet*";
        return Err(format!(
            "torchvision has no classification model `{model}`; it has {families}"
        ));
    }
    let known: Vec<&str> = rows.clone().map(|row| row.1).collect();
    let Some(&(_, _, resize, crop, interpolation, numbers)) =
        rows.find(|row| weights.is_none_or(|weights| row.1 == weights))
    else {
        return Err(format!(
            "torchvision's `{model}` has no weights `{}`; it has {}",
            weights.unwrap_or_default(),
            known.join(", ")
        ));
    };
    let imagenet = Preprocess::imagenet();
    let (mean, std) = match numbers {
        Imagenet => (imagenet.mean, imagenet.std),
        Half => ([0.5; 3], [0.5; 3]),
        Vgg => ([0.482_35, 0.458_82, 0.407_84], [1.0 / 255.0; 3]),
    };
    Ok(Preprocess {
        resize: Resize::ShortSide(resize),
        crop: Crop::Center(crop, crop),
        interpolation,
        mean,
        std,
        ..imagenet
    })
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    ("alexnet", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("convnext_base", "IMAGENET1K_V1", 232, 224, Bilinear, Imagenet),
    ("convnext_large", "IMAGENET1K_V1", 232, 224, Bilinear, Imagenet),
    ("convnext_small", "IMAGENET1K_V1", 230, 224, Bilinear, Imagenet),
    ("convnext_tiny", "IMAGENET1K_V1", 236, 224, Bilinear, Imagenet),
    ("densenet121", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("densenet161", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("densenet169", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("densenet201", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("efficientnet_b0", "IMAGENET1K_V1", 256, 224, Bicubic, Imagenet),
    ("efficientnet_b1", "IMAGENET1K_V2", 255, 240, Bilinear, Imagenet),
    ("efficientnet_b1", "IMAGENET1K_V1", 256, 240, Bicubic, Imagenet),
    ("efficientnet_b2", "IMAGENET1K_V1", 288, 288, Bicubic, Imagenet),
    ("efficientnet_b3", "IMAGENET1K_V1", 320, 300, Bicubic, Imagenet),
    ("efficientnet_b4", "IMAGENET1K_V1", 384, 380, Bicubic, Imagenet),
    ("efficientnet_b5", "IMAGENET1K_V1", 456, 456, Bicubic, Imagenet),
    ("efficientnet_b6", "IMAGENET1K_V1", 528, 528, Bicubic, Imagenet),
    ("efficientnet_b7", "IMAGENET1K_V1", 600, 600, Bicubic, Imagenet),
    ("efficientnet_v2_l", "IMAGENET1K_V1", 480, 480, Bicubic, Half),
    ("efficientnet_v2_m", "IMAGENET1K_V1", 480, 480, Bilinear, Imagenet),
    ("efficientnet_v2_s", "IMAGENET1K_V1", 384, 384, Bilinear, Imagenet),
    ("googlenet", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("inception_v3", "IMAGENET1K_V1", 342, 299, Bilinear, Imagenet),
    ("maxvit_t", "IMAGENET1K_V1", 224, 224, Bicubic, Imagenet),
    ("mnasnet0_5", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("mnasnet0_75", "IMAGENET1K_V1", 232, 224, Bilinear, Imagenet),
    ("mnasnet1_0", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("mnasnet1_3", "IMAGENET1K_V1", 232, 224, Bilinear, Imagenet),
    ("mobilenet_v2", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("mobilenet_v2", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("mobilenet_v3_large", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("mobilenet_v3_large", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("mobilenet_v3_small", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_x_16gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_x_16gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_x_1_6gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_x_1_6gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_x_32gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_x_32gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_x_3_2gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_x_3_2gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_x_400mf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_x_400mf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_x_800mf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_x_800mf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_x_8gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_x_8gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_y_128gf", "IMAGENET1K_SWAG_E2E_V1", 384, 384, Bicubic, Imagenet),
    ("regnet_y_128gf", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, Bicubic, Imagenet),
    ("regnet_y_16gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_y_16gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_y_16gf", "IMAGENET1K_SWAG_E2E_V1", 384, 384, Bicubic, Imagenet),
    ("regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, Bicubic, Imagenet),
    ("regnet_y_1_6gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_y_1_6gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_y_32gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_y_32gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_y_32gf", "IMAGENET1K_SWAG_E2E_V1", 384, 384, Bicubic, Imagenet),
    ("regnet_y_32gf", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, Bicubic, Imagenet),
    ("regnet_y_3_2gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_y_3_2gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_y_400mf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_y_400mf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_y_800mf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_y_800mf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("regnet_y_8gf", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("regnet_y_8gf", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("resnet101", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("resnet101", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("resnet152", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("resnet152", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("resnet18", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("resnet34", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("resnet50", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("resnet50", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("resnext101_32x8d", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("resnext101_32x8d", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("resnext101_64x4d", "IMAGENET1K_V1", 232, 224, Bilinear, Imagenet),
    ("resnext50_32x4d", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("resnext50_32x4d", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("shufflenet_v2_x0_5", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("shufflenet_v2_x1_0", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("shufflenet_v2_x1_5", "IMAGENET1K_V1", 232, 224, Bilinear, Imagenet),
    ("shufflenet_v2_x2_0", "IMAGENET1K_V1", 232, 224, Bilinear, Imagenet),
    ("squeezenet1_0", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("squeezenet1_1", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("swin_b", "IMAGENET1K_V1", 238, 224, Bicubic, Imagenet),
    ("swin_s", "IMAGENET1K_V1", 246, 224, Bicubic, Imagenet),
    ("swin_t", "IMAGENET1K_V1", 232, 224, Bicubic, Imagenet),
    ("swin_v2_b", "IMAGENET1K_V1", 272, 256, Bicubic, Imagenet),
    ("swin_v2_s", "IMAGENET1K_V1", 260, 256, Bicubic, Imagenet),
    ("swin_v2_t", "IMAGENET1K_V1", 260, 256, Bicubic, Imagenet),
    ("vgg11", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vgg11_bn", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vgg13", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vgg13_bn", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vgg16", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vgg16", "IMAGENET1K_FEATURES", 256, 224, Bilinear, Vgg),
    ("vgg16_bn", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vgg19", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vgg19_bn", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vit_b_16", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384, 384, Bicubic, Imagenet),
    ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, Bicubic, Imagenet),
    ("vit_b_32", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1", 518, 518, Bicubic, Imagenet),
    ("vit_h_14", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, Bicubic, Imagenet),
    ("vit_l_16", "IMAGENET1K_V1", 242, 224, Bilinear, Imagenet),
    ("vit_l_16", "IMAGENET1K_SWAG_E2E_V1", 512, 512, Bicubic, Imagenet),
    ("vit_l_16", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, Bicubic, Imagenet),
    ("vit_l_32", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("wide_resnet101_2", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("wide_resnet101_2", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
    ("wide_resnet50_2", "IMAGENET1K_V2", 232, 224, Bilinear, Imagenet),
    ("wide_resnet50_2", "IMAGENET1K_V1", 256, 224, Bilinear, Imagenet),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_weights_by_name() {
        let sizes = |name: &str| torchvision(name).map(|p| (p.resize, p.crop, p.interpolation));
        let want = |resize, crop, filter| Ok((Resize::ShortSide(resize), Crop::Center(crop, crop), filter));
        assert_eq!(torchvision("resnet18"), Ok(Preprocess::imagenet()));
        assert_eq!(sizes("resnet50"), want(232, 224, Bilinear));
        assert_eq!(sizes("resnet50.IMAGENET1K_V1"), want(256, 224, Bilinear));
        assert_eq!(sizes("vit_h_14.IMAGENET1K_SWAG_E2E_V1"), want(518, 518, Bicubic));
        assert!(
            torchvision("resnet19")
                .unwrap_err()
                .contains("no classification model `resnet19`")
        );
        assert_eq!(
            torchvision("resnet50.V2").unwrap_err(),
            "torchvision's `resnet50` has no weights `V2`; it has IMAGENET1K_V2, IMAGENET1K_V1"
        );
        assert!(
            TABLE
                .iter()
                .all(|row| torchvision(row.0).unwrap().check().is_ok())
        );
    }
}
