//! The table of a network with an input.

use super::{fit, sizes, state_dict};
use crate::template::{BatchSize, Column, SummaryFormat};

const NET: &str = "
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.list = nn.ModuleList([nn.Conv2d(8, 8, 1, bias=False)])
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x) * self.scale
        x = self.list[0](x)
        x = self.list[0](x)
        return self.fc(x.mean([2, 3]))
";

/// torchinfo 1.8.0's own text of that network: `summary(Net(), input_size=(10, 3, 6, 5))`, `stem` frozen.
const TABLE: &str = "\
==========================================================================================
Layer (type:depth-idx)                   Output Shape              Param #
==========================================================================================
Net                                      [10, 2]                   8
├─Sequential: 1-1                        [10, 8, 4, 3]             --
│    └─Conv2d: 2-1                       [10, 8, 4, 3]             (224)
│    └─ReLU: 2-2                         [10, 8, 4, 3]             --
├─ModuleList: 1-2                        --                        --
│    └─Conv2d: 2-3                       [10, 8, 4, 3]             64
│    └─Conv2d: 2-4                       [10, 8, 4, 3]             (recursive)
├─Linear: 1-3                            [10, 2]                   18
==========================================================================================
";

#[test]
fn the_table_is_torchinfos() {
    let sizes = sizes(&[
        ("stem.0.weight", &[8, 3, 3, 3]),
        ("stem.0.bias", &[8]),
        ("list.0.weight", &[8, 8, 1, 1]),
        ("scale", &[1, 8, 1, 1]),
        ("fc.weight", &[2, 8]),
        ("fc.bias", &[2]),
    ]);
    let template = fit(NET, sizes.clone()).unwrap();
    let mut tensors = state_dict(&sizes);
    for (name, entry) in tensors.iter_mut() {
        entry.is_parameter = true;
        entry.requires_grad = !name.starts_with("stem");
    }
    let batch: BatchSize = "10,3,6,5".parse().unwrap();
    let summary = template.summary(&tensors, batch).unwrap();
    let text = summary.to_text(&SummaryFormat::default());
    assert!(text.starts_with(TABLE), "{text}");
    assert_eq!((summary.n_params, summary.n_trainable), (314, 90));
    // 224 and twice 64 for each of 12 positions, 18 of the linear layer; ten samples.
    assert_eq!(summary.n_mult_adds, 10 * (12 * (224 + 2 * 64) + 18));
    let all = SummaryFormat {
        depth: 1,
        columns: [
            "kernel_size",
            "input_size",
            "output_size",
            "num_params",
            "params_percent",
            "mult_adds",
            "trainable",
        ]
        .map(|name| name.parse::<Column>().unwrap())
        .to_vec(),
        var_names: true,
    };
    let text = summary.to_text(&all);
    let line = text
        .lines()
        .find(|line| line.starts_with("├─Sequential"))
        .unwrap();
    let cells: Vec<&str> = line
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    assert_eq!(
        cells,
        [
            "├─Sequential (stem): 1-1",
            "--",
            "[10, 3, 6, 5]",
            "[10, 8, 4, 3]",
            "(224)",
            "71.34%",
            "26,880",
            "False"
        ]
    );
    assert!(template.summary(&tensors, "10,1,6,5".parse().unwrap()).is_err());
    assert!("10,3,6".parse::<BatchSize>().is_err() && "0,3,6,5".parse::<BatchSize>().is_err());
}
