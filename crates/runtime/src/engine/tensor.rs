//! What goes into a session and comes out of it: slices of numbers with shapes, converted where the graph's numbers are
//! of another type.

use std::borrow::Cow;
use std::sync::Arc;

use half::{bf16, f16};
use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef};

/// One input of a run, row-major.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Numbers for a graph that takes float32, or float16, bfloat16 or float64, to which they are rounded or widened.
    F32 {
        /// The sizes of its axes.
        shape: &'a [usize],
        /// As many numbers as the sizes multiply to.
        values: &'a [f32],
    },
    /// Whole numbers for a graph that takes int64, or int32, float32 or bool, to which they are converted.
    I64 {
        /// The sizes of its axes.
        shape: &'a [usize],
        /// As many numbers as the sizes multiply to.
        values: &'a [i64],
    },
}

/// One output of a run, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The sizes of its axes.
    pub shape: Vec<usize>,
    /// Its numbers; those of a float16 graph are widened.
    pub values: Vec<f32>,
}

/// An output that is looked at where ONNX Runtime left it, without a copy unless its numbers are no float32.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputView<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// The sizes of its axes.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub values: Cow<'a, [f32]>,
}

impl OutputView<'_> {
    /// How many numbers each of the first axis's rows has; 0 where there are no rows.
    pub fn row_len(&self) -> usize {
        match self.shape.first() {
            Some(&n_rows) if n_rows > 0 => self.values.len() / n_rows,
            _ => 0,
        }
    }

    /// A copy that outlives the run.
    pub fn into_owned(self) -> Output {
        Output {
            shape: self.shape,
            values: self.values.into_owned(),
        }
    }
}

impl Output {
    /// How many numbers each of the first axis's rows has; 0 where there are no rows.
    pub fn row_len(&self) -> usize {
        match self.shape.first() {
            Some(&n_rows) if n_rows > 0 => self.values.len() / n_rows,
            _ => 0,
        }
    }
}

/// The name of an element type as torch spells it.
pub(super) fn type_name(ty: TensorElementType) -> &'static str {
    match ty {
        TensorElementType::Float32 => "float32",
        TensorElementType::Float64 => "float64",
        TensorElementType::Float16 => "float16",
        TensorElementType::Bfloat16 => "bfloat16",
        TensorElementType::Int64 => "int64",
        TensorElementType::Int32 => "int32",
        TensorElementType::Int16 => "int16",
        TensorElementType::Int8 => "int8",
        TensorElementType::Uint64 => "uint64",
        TensorElementType::Uint32 => "uint32",
        TensorElementType::Uint16 => "uint16",
        TensorElementType::Uint8 => "uint8",
        TensorElementType::Bool => "bool",
        TensorElementType::String => "string",
        _ => "of a number type with no name here",
    }
}

/// Makes a value of `ty` of an input, borrowed where no conversion is needed.
pub(super) fn input_value<'v>(
    input: &Input<'v>,
    ty: TensorElementType,
) -> Result<SessionInputValue<'v>, String> {
    let value = match (input, ty) {
        (Input::F32 { shape, values }, TensorElementType::Float32) => borrowed(shape, values)?,
        (Input::F32 { shape, values }, TensorElementType::Float16) => {
            converted(shape, values.iter().map(|&value| f16::from_f32(value)))?
        }
        (Input::F32 { shape, values }, TensorElementType::Bfloat16) => {
            converted(shape, values.iter().map(|&value| bf16::from_f32(value)))?
        }
        (Input::F32 { shape, values }, TensorElementType::Float64) => {
            converted(shape, values.iter().map(|&value| f64::from(value)))?
        }
        (Input::I64 { shape, values }, TensorElementType::Int64) => borrowed(shape, values)?,
        (Input::I64 { shape, values }, TensorElementType::Int32) => {
            let narrow: Result<Vec<i32>, String> = values
                .iter()
                .map(|&value| i32::try_from(value).map_err(|_| format!("{value} does not fit into int32")))
                .collect();
            converted(shape, narrow?.into_iter())?
        }
        (Input::I64 { shape, values }, TensorElementType::Float32) => {
            converted(shape, values.iter().map(|&value| value as f32))?
        }
        (Input::I64 { shape, values }, TensorElementType::Bool) => {
            converted(shape, values.iter().map(|&value| value != 0))?
        }
        (Input::F32 { .. }, other) => return Err(format!("it takes {}, not float32", type_name(other))),
        (Input::I64 { .. }, other) => return Err(format!("it takes {}, not int64", type_name(other))),
    };
    Ok(value)
}

fn borrowed<'v, T>(shape: &'v [usize], values: &'v [T]) -> Result<SessionInputValue<'v>, String>
where
    T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
{
    TensorRef::from_array_view((shape, values))
        .map(SessionInputValue::from)
        .map_err(|error| error.to_string())
}

fn converted<'v, T>(shape: &[usize], values: impl Iterator<Item = T>) -> Result<SessionInputValue<'v>, String>
where
    T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
{
    let values: Arc<[T]> = values.collect();
    TensorRef::from_array_view((shape.to_vec(), values))
        .map(SessionInputValue::from)
        .map_err(|error| error.to_string())
}

/// Looks at an output; `Err` says what it is instead of numbers with a fraction.
pub(super) fn output_view<'v>(name: &'v str, value: &'v DynValue) -> Result<OutputView<'v>, String> {
    let ty = value
        .dtype()
        .tensor_type()
        .ok_or_else(|| format!("`{name}` is no tensor"))?;
    let shape = value
        .shape()
        .iter()
        .map(|&size| usize::try_from(size).map_err(|_| format!("`{name}` has an axis of size {size}")))
        .collect::<Result<Vec<usize>, String>>()?;
    let values = match ty {
        TensorElementType::Float32 => Cow::Borrowed(extract::<f32>(value)?),
        TensorElementType::Float16 => extract::<f16>(value)?
            .iter()
            .map(|value| value.to_f32())
            .collect(),
        TensorElementType::Bfloat16 => extract::<bf16>(value)?
            .iter()
            .map(|value| value.to_f32())
            .collect(),
        TensorElementType::Float64 => extract::<f64>(value)?.iter().map(|&value| value as f32).collect(),
        other => {
            return Err(format!(
                "`{name}` is {}, not float32 or float16",
                type_name(other)
            ));
        }
    };
    Ok(OutputView { name, shape, values })
}

fn extract<T: PrimitiveTensorElementType>(value: &DynValue) -> Result<&[T], String> {
    value
        .try_extract_tensor::<T>()
        .map(|(_, values)| values)
        .map_err(|error| error.to_string())
}
