//! A head's layers as ONNX operators.

use super::fold::fold;
use super::tail::Tail;
use crate::head::{BatchNorm1d, Head, Layer, LayerNorm, Linear};
use crate::onnx::attribute::{float, integer, integers};

/// From which operator set on there is `LayerNormalization`.
const LAYER_NORM_OPSET: i64 = 17;
/// And `Gelu`.
const GELU_OPSET: i64 = 20;

impl Tail<'_> {
    /// Puts all layers behind the last tensor.
    pub(super) fn layers(&mut self, head: &Head, opset: i64) {
        let layers = fold(head.layers());
        if let [(_, Layer::Linear(linear))] = layers.as_slice() {
            // One product, whatever it was folded of, has the names of one.
            self.linear("", linear);
            return;
        }
        for (at, layer) in &layers {
            let scope = format!("{at}.");
            match layer {
                Layer::Linear(linear) => self.linear(&scope, linear),
                Layer::BatchNorm1d(norm) => self.batch_norm(&scope, norm),
                Layer::LayerNorm(norm) => self.layer_norm(&scope, norm, opset),
                Layer::Relu => self.node("Relu", &format!("{scope}relu"), &[], Vec::new()),
                Layer::Gelu => self.gelu(&scope, opset),
                Layer::Dropout { .. } => {}
            }
        }
    }

    fn linear(&mut self, scope: &str, linear: &Linear) {
        let weight = self.weight(
            &format!("{scope}weight"),
            &[linear.n_out, linear.n_in],
            &linear.weight,
        );
        let bias = self.weight(&format!("{scope}bias"), &[linear.n_out], &linear.bias);
        let attributes = vec![integer("transB", 1)];
        self.node("Gemm", &format!("{scope}gemm"), &[&weight, &bias], attributes);
    }

    fn batch_norm(&mut self, scope: &str, norm: &BatchNorm1d) {
        let arrays = [
            ("weight", &norm.weight),
            ("bias", &norm.bias),
            ("running_mean", &norm.running_mean),
            ("running_var", &norm.running_var),
        ];
        let names =
            arrays.map(|(name, values)| self.weight(&format!("{scope}{name}"), &[values.len()], values));
        let inputs = names.each_ref().map(String::as_str);
        let attributes = vec![float("epsilon", norm.eps)];
        self.node("BatchNormalization", &format!("{scope}norm"), &inputs, attributes);
    }

    fn layer_norm(&mut self, scope: &str, norm: &LayerNorm, opset: i64) {
        let step = |name: &str| format!("{scope}{name}");
        let d = [norm.weight.len()];
        let weight = self.weight(&step("weight"), &d, &norm.weight);
        let bias = self.weight(&step("bias"), &d, &norm.bias);
        if opset >= LAYER_NORM_OPSET {
            let attributes = vec![integer("axis", -1), float("epsilon", norm.eps)];
            self.node("LayerNormalization", &step("norm"), &[&weight, &bias], attributes);
            return;
        }
        // Before operator set 18 the axes of a mean are an attribute.
        let mean_attributes = || vec![integers("axes", &[1]), integer("keepdims", 1)];
        let eps = self.weight(&step("eps"), &[], &[norm.eps]);
        let rows = self.last();
        self.node("ReduceMean", &step("mean"), &[], mean_attributes());
        let mean = self.last();
        self.node_of("Sub", &step("centred"), &[&rows, &mean], Vec::new());
        let centred = self.last();
        self.node_of("Mul", &step("squares"), &[&centred, &centred], Vec::new());
        self.node("ReduceMean", &step("var"), &[], mean_attributes());
        self.node("Add", &step("var_eps"), &[&eps], Vec::new());
        self.node("Sqrt", &step("std"), &[], Vec::new());
        let std = self.last();
        self.node_of("Div", &step("normalised"), &[&centred, &std], Vec::new());
        self.node("Mul", &step("scaled"), &[&weight], Vec::new());
        self.node("Add", &step("norm"), &[&bias], Vec::new());
    }

    fn gelu(&mut self, scope: &str, opset: i64) {
        let step = |name: &str| format!("{scope}{name}");
        if opset >= GELU_OPSET {
            self.node("Gelu", &step("gelu"), &[], Vec::new());
            return;
        }
        // x/2 · (1 + erf(x/√2))
        let scalars = [
            ("sqrt_half", std::f32::consts::FRAC_1_SQRT_2),
            ("one", 1.0),
            ("half", 0.5),
        ];
        let [sqrt_half, one, half] = scalars.map(|(name, value)| self.weight(&step(name), &[], &[value]));
        let x = self.last();
        self.node("Mul", &step("scaled"), &[&sqrt_half], Vec::new());
        self.node("Erf", &step("erf"), &[], Vec::new());
        self.node("Add", &step("erf_one"), &[&one], Vec::new());
        let twice = self.last();
        self.node_of("Mul", &step("twice"), &[&x, &twice], Vec::new());
        self.node("Mul", &step("gelu"), &[&half], Vec::new());
    }
}
