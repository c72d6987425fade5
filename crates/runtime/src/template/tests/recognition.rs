//! Which template a state dict is of, and in what it differs from the nearest.

use std::path::Path;

use super::{Sizes, fit, sizes, sizes_of};
use crate::error::Error;
use crate::template::{Choice, NoTemplate, Template};

fn recognise(sizes: Sizes, choice: &Choice) -> Result<Template, Error> {
    Template::recognise_sizes(Path::new("net.pth"), sizes, choice)
}

fn refused(sizes: Sizes, choice: &Choice) -> NoTemplate {
    match recognise(sizes, choice) {
        Err(Error::NoTemplate(found)) => *found,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_network_that_is_shipped_is_recognised_as_itself() {
    let names = Template::shipped().unwrap();
    for wanted in [
        "resnet18",
        "resnet152",
        "vgg19_bn",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "convnext_large",
        "vit_h_14",
        "timm_vit",
    ] {
        assert!(names.iter().any(|name| name == wanted), "{wanted}");
    }
    for name in names {
        let found = recognise(sizes_of(&name), &Choice::Shipped).unwrap();
        assert_eq!(found.name(), name);
    }
}

#[test]
fn numbers_of_parameters_are_torchvisions() {
    // From the weights' pages of torchvision 0.24.
    for (name, n) in [
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("vgg16", 138_357_544),
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v3_large", 5_483_032),
        ("convnext_tiny", 28_589_128),
        ("vit_b_16", 86_567_656),
    ] {
        let params = sizes_of(name)
            .into_iter()
            .filter(|(name, _)| !name.contains("running_") && !name.contains("num_batches"))
            .map(|(_, sizes)| sizes.iter().product::<usize>());
        assert_eq!(params.sum::<usize>(), n, "{name}");
    }
}

#[test]
fn a_checkpoint_tells_its_classes_channels_and_positions() {
    let mut resnet = sizes_of("resnet18");
    resnet.insert("fc.weight".to_owned(), vec![10, 512]);
    resnet.insert("fc.bias".to_owned(), vec![10]);
    resnet.insert("conv1.weight".to_owned(), vec![64, 1, 7, 7]);
    // A counter that old checkpoints lack.
    resnet.remove("bn1.num_batches_tracked");
    assert_eq!(recognise(resnet, &Choice::Shipped).unwrap().name(), "resnet18");
    let mut vit = sizes_of("vit_b_16");
    vit.insert("encoder.pos_embedding".to_owned(), vec![1, 24 * 24 + 1, 768]);
    assert_eq!(recognise(vit, &Choice::Shipped).unwrap().name(), "vit_b_16");
}

#[test]
fn what_fits_none_is_told_apart_from_the_nearest() {
    let mut odd = sizes_of("resnet34");
    odd.remove("fc.bias");
    odd.remove("layer1.0.bn1.weight");
    odd.insert("head.0.weight".to_owned(), vec![3, 512]);
    odd.insert("conv1.weight".to_owned(), vec![64, 3, 3, 3]);
    let found = refused(odd, &Choice::Shipped);
    assert_eq!(found.nearest, "resnet34");
    assert_eq!(found.missing, ["fc.bias", "layer1.0.bn1.weight"]);
    assert_eq!(found.unexpected, ["head.0.weight"]);
    assert_eq!(
        found.mismatched,
        [("conv1.weight".to_owned(), vec![64, 3, 3, 3], vec![64, 3, 7, 7])]
    );
    assert_eq!(
        found.to_string(),
        "`net.pth` fits no template, and `resnet34` is the nearest: 2 missing (`fc.bias`, `layer1.0.bn1.weight`), \
         1 unexpected (`head.0.weight`), 1 of another shape (`conv1.weight` [64, 3, 3, 3] for [64, 3, 7, 7])"
    );
    let found = refused(sizes_of("resnet18"), &Choice::Named("resnet34".to_owned()));
    assert!(
        found
            .to_string()
            .starts_with("`net.pth` does not fit the template `resnet34`: ")
    );
    assert!(
        found.to_string().contains(" and "),
        "many are counted, not listed: {found}"
    );
}

#[test]
fn a_prefix_that_hides_a_template_is_named() {
    let wrapped = sizes_of("resnet18")
        .into_iter()
        .map(|(name, sizes)| (format!("module.{name}"), sizes));
    let found = refused(wrapped.collect(), &Choice::Shipped);
    assert_eq!(found.prefix, Some(("module.".to_owned(), "resnet18".to_owned())));
}

#[test]
fn sizes_beyond_all_measure_are_refused() {
    for (name, size) in [
        ("fc.weight", vec![usize::MAX, 512]),
        (
            "patch_embed.proj.weight",
            vec![usize::MAX, usize::MAX, usize::MAX, usize::MAX],
        ),
        ("pos_embed", vec![1, usize::MAX, 7]),
        ("conv1.weight", vec![64, 0, 7, 7]),
    ] {
        let mut odd = sizes(&[]);
        odd.insert(name.to_owned(), size);
        refused(odd, &Choice::Shipped);
    }
    refused(sizes(&[]), &Choice::Shipped);
}

#[test]
fn a_file_has_its_marked_networks_or_its_last_class() {
    let text = "class A(nn.Module):\n    def __init__(self, n=2):\n        self.fc = nn.Linear(n, 1)\n\n\nclass B(A):\n    def __init__(self):\n        super().__init__(3)\n";
    let of = |n: usize| sizes(&[("fc.weight", &[1, n]), ("fc.bias", &[1])]);
    assert_eq!(fit(text, of(3)).unwrap().name(), "B");
    assert!(matches!(fit(text, of(2)), Err(Error::NoTemplate(_))));
    let marked = text.replace("class", "@model\nclass");
    assert_eq!(fit(&marked, of(2)).unwrap().name(), "A");
    assert_eq!(fit(&marked, of(3)).unwrap().name(), "B");
    assert!(matches!(fit("x = 1\n", of(3)), Err(Error::Usage(_))));
    let unknown = recognise(of(1), &Choice::Named("resnet19".to_owned()));
    assert!(matches!(unknown, Err(Error::Usage(text)) if text.contains("resnet18")));
}
