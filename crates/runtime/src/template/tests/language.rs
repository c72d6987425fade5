//! What can be read, and what is said of what cannot.

use super::{fit, sizes};
use crate::error::Error;
use crate::template::TemplateError;

/// The error of a template's text.
fn error(text: &str) -> TemplateError {
    match fit(text, sizes(&[])) {
        Err(Error::Template(error)) => *error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_have_a_line_and_a_column() {
    for (text, line, column, message) in [
        ("class Net(nn.Module:\n", 1, 20, "expected `)`, and found `:`"),
        (
            "class Net(nn.Module):\n    def __init__(self):\n        self.a = nn.Conv9d(1)\n",
            3,
            18,
            "`Conv9d` is not known; the nearest name is `Conv2d`",
        ),
        (
            "class Net(nn.Module):\n  def __init__(self):\n    self.fc = nn.Linear(3)\n",
            3,
            15,
            "`__init__` needs `out_features`",
        ),
        ("x = 'abc\n", 1, 5, "a string that is not closed"),
        (
            "def f():\n    x = 1\n  y = 2\n",
            3,
            1,
            "this line is indented like no line above it",
        ),
        (
            "while True:\n    pass\n",
            1,
            1,
            "`while` is not in the part of Python that templates are written in",
        ),
        (
            "x = 1 +\n",
            1,
            8,
            "expected a value, and found the end of the line",
        ),
        (
            "x = lambda y: y\n",
            1,
            5,
            "`lambda` is not in the part of Python that templates are written in",
        ),
        ("import numpy as np\n", 1, 1, "`numpy` cannot be imported"),
        ("a, b = 1, 2, 3\n", 1, 1, "2 names for 3 values"),
        ("f(1) = 2\n", 1, 1, "nothing can be assigned to this"),
        ("x = [1][4]\n", 1, 5, "there is no item 4 among 1"),
        ("x = 1 // 0\n", 1, 5, "a division by zero"),
        ("x = f'{1 + }'\n", 1, 12, "expected a value"),
        (
            "class A(nn.Module):\n  pass\nx = A().head\n",
            3,
            5,
            "`A` has no `head`",
        ),
    ] {
        let error = error(text);
        let found = (error.line, error.column, error.message.as_str());
        assert_eq!((found.0, found.1), (line, column), "{text}: {error:?}");
        assert!(found.2.contains(message), "{text}: {}", error.message);
        assert!(error.file.ends_with("net.template"));
    }
}

#[test]
fn an_error_shows_its_line_and_who_called() {
    let text = "class Net(nn.Module):\n    def __init__(self, n):\n        self.conv = nn.Conv2d(3, n, 3, groups=2)\n\n\ndef net():\n    return Net(8)\n\n\n@model\ndef small():\n    return net()\n";
    let error = error(text);
    assert_eq!(error.message, "this does not hold");
    assert_eq!(error.file, "nn.template");
    let excerpt = error.excerpt();
    assert!(excerpt.contains("^^^^"), "{excerpt}");
    for caller in [
        "in nn.Conv2d, called in",
        "in Net, called in",
        "in net, called in",
        "net.template, line 3",
        "net.template, line 7",
        "net.template, line 12",
    ] {
        assert!(excerpt.contains(caller), "{excerpt}");
    }
}

#[test]
fn nothing_runs_for_ever_or_too_deep() {
    let calls = format!(
        "def f(n):\n    return {}f(n){}\n\n\n@model\ndef g():\n    return f(1)\n",
        "(1 + ".repeat(40),
        ")".repeat(40)
    );
    let deep = format!("x = {}1{}\n", "(".repeat(5000), ")".repeat(5000));
    let long_chain = format!("x = {}1\n", "-".repeat(100_000));
    let blocks: String = (0..300).map(|n| format!("{}if True:\n", " ".repeat(n))).collect();
    for (text, message) in [
        (
            "def f():\n    return f()\n\n\n@model\ndef g():\n    return f()\n",
            "64 calls within each other",
        ),
        (
            "def f(n):\n    for a in range(90000):\n        for b in range(90000):\n            pass\n\n\n@model\ndef g():\n    return f(1)\n",
            "steps",
        ),
        (calls.as_str(), "within each other"),
        ("x = range(10 ** 12)\n", "a range of more than"),
        ("x = [0] * 10 ** 12\n", "a list of more than"),
        ("x = 9223372036854775807 + 1\n", "too large"),
        (deep.as_str(), "too many brackets"),
        (long_chain.as_str(), "too much within each other"),
        (blocks.as_str(), "within each other"),
        (
            "@model\ndef g():\n    net = nn.Sequential(nn.ReLU())\n    for i in range(100000):\n        nn.ReLU()\n    return net\n",
            "more than 100000 modules",
        ),
    ] {
        let error = error(text);
        assert!(error.message.contains(message), "{}", error.message);
    }
}

#[test]
fn texts_of_every_kind_end() {
    // Truncations and single changes of a real template: an error, or a template, and never a panic.
    let text = include_str!("../shipped/vit.template");
    for n in (0..text.len()).step_by(37).filter(|&n| text.is_char_boundary(n)) {
        let _ = fit(&text[..n], sizes(&[]));
        for (old, new) in [
            ("(", ""),
            (":", ""),
            ("self", "("),
            ("=", "["),
            ("    ", "  "),
            ("x", "x x"),
        ] {
            let (front, behind) = text.split_at(n);
            let _ = fit(&format!("{front}{}", behind.replacen(old, new, 1)), sizes(&[]));
        }
    }
}

#[test]
fn a_class_may_be_written_as_python_has_it() {
    let text = r#"
import torch
import torch.nn as nn
import torch.nn.functional as F
from typing import List, Optional


class Block(nn.Module):
    """A text."""

    expansion: int = 2

    def __init__(self, n: int, *, scale: Optional[float] = None, **options) -> None:
        super(Block, self).__init__()
        self.n, self.scale = n, scale
        self.layers = nn.ModuleList([nn.Linear(n, n) for _ in range(2) if n > 0])
        self.named = nn.ModuleDict({"last": nn.Linear(n, n * self.expansion)})
        self.register_buffer("shift", torch.zeros(n))
        self.missing = None
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = x + F.relu(layer(x)) if i else layer(x)
        x += self.shift
        if self.missing is not None:
            x = self.missing(x)
        return self.named["last"](x)


class Net(nn.Module):
    def __init__(self, widths: List[int] = [4]):
        super().__init__()
        layers = []
        for i, width in enumerate(widths):
            layers.append(Block(width, scale=0.5, unused=1))
        self.body = nn.Sequential(*layers)
        self.add_module(f"head_{len(widths)}", nn.Linear(widths[-1] * Block.expansion, 3))

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.view(n, -1)[:, :4]
        return self.head_1(self.body(x))
"#;
    let wanted = sizes(&[
        ("body.0.layers.0.weight", &[4, 4]),
        ("body.0.layers.0.bias", &[4]),
        ("body.0.layers.1.weight", &[4, 4]),
        ("body.0.layers.1.bias", &[4]),
        ("body.0.named.last.weight", &[8, 4]),
        ("body.0.named.last.bias", &[8]),
        ("body.0.shift", &[4]),
        ("head_1.weight", &[3, 8]),
        ("head_1.bias", &[3]),
    ]);
    assert_eq!(fit(text, wanted).unwrap().name(), "Net");
}
