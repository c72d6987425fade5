//! Products by cuBLASLt, where it is found: descriptors and algorithm are chosen once for a shape and kept.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;

use super::backend::{Kind, Operand, Product};
use super::cuda::Buffer;
use crate::contained::contain;
use crate::engine::Device;
use crate::error::Error;

/// What an algorithm may use beside its operands, as NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A handle with its workspace and what was chosen for the shapes so far.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: RefCell<HashMap<Key, Option<Plan>>>,
}

/// What an algorithm is chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    kinds: (Kind, Kind),
    sizes: (usize, usize, usize),
    a: (usize, usize),
    b: (usize, usize),
    out_stride: usize,
    accumulates: bool,
}

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of cuBLASLt's A, B and D.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Blas {
    /// The library, where the system's loader finds it.
    pub(super) fn open(zeros: impl Fn(usize) -> Result<Buffer, Error>) -> Result<Option<Blas>, Error> {
        // SAFETY: loading NVIDIA's library runs its initialisers, as in any program that uses it.
        let is_present = contain(|| unsafe { sys::is_culib_present() }).unwrap_or(false);
        if !is_present {
            return Ok(None);
        }
        // A library that lacks a symbol, or does not start on this GPU, is as good as none.
        let Ok(Ok(handle)) = contain(result::create_handle) else {
            return Ok(None);
        };
        Ok(Some(Blas {
            handle,
            workspace: zeros(WORKSPACE_BYTES)?,
            plans: RefCell::default(),
        }))
    }

    /// Multiplies; false where it has no algorithm for this shape.
    pub(super) fn multiply(
        &self,
        device: Device,
        stream: CUstream,
        product: &Product<'_, Buffer>,
    ) -> Result<bool, Error> {
        let key = Key {
            kinds: (product.kind, product.out_kind),
            sizes: (product.m, product.n, product.k),
            a: (product.a.row_stride, product.a.k_stride),
            b: (product.b.row_stride, product.b.k_stride),
            out_stride: product.out_stride,
            accumulates: product.beta != 0.0,
        };
        let mut plans = self.plans.borrow_mut();
        let plan = plans.entry(key).or_insert_with(|| {
            let made = contain(|| Plan::new(self.handle, product));
            made.ok().and_then(Result::ok)
        });
        let Some(plan) = plan else {
            return Ok(false);
        };
        let n_bytes = product.kind.n_bytes();
        let pointer = |operand: &Operand<'_, Buffer>| {
            (operand.buffer.at + (operand.offset * n_bytes) as u64) as *const c_void
        };
        let out = (product.out.at + (product.out_offset * product.out_kind.n_bytes()) as u64) as *mut c_void;
        // SAFETY: descriptors live in `plans`; the operands' memory covers the shapes, as for the own kernels. Row-major
        // D = a·bᵀ is column-major Dᵀ = b·aᵀ, so that cuBLASLt's A is `b` and its B is `a`. C is D.
        let result = unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const product.alpha).cast(),
                (&raw const product.beta).cast(),
                pointer(&product.b),
                plan.layouts[0],
                pointer(&product.a),
                plan.layouts[1],
                out,
                plan.layouts[2],
                out,
                plan.layouts[2],
                &plan.algorithm,
                self.workspace.at as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        };
        result.map(|()| true).map_err(|error| Error::Gpu {
            device,
            action: "multiply on",
            message: format!("cuBLASLt says {:?}", error.0),
        })
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, product: &Product<'_, Buffer>) -> Result<Plan, CublasError> {
        let number = |kind| match kind {
            Kind::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Kind::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Kind::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let Product { m, n, k, .. } = *product;
        // float32 sums; float32 operands as they are, not in TensorFloat-32.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut plan = Plan {
            description: result::create_matmul_desc(compute, number(Kind::F32))?,
            layouts: [std::ptr::null_mut(); 3],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // `b` is n x k: rows in memory are columns of a column-major matrix, which is k x n, to be transposed.
        let b_along = product.b.k_stride == 1;
        let a_along = product.a.k_stride == 1;
        plan.layouts = [
            layout(number(product.kind), n, k, &product.b, b_along)?,
            layout(number(product.kind), m, k, &product.a, a_along)?,
            result::create_matrix_layout(
                number(product.out_kind),
                n as u64,
                m as u64,
                product.out_stride as i64,
            )?,
        ];
        let transpose = [
            (
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                b_along,
            ),
            (
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
                !a_along,
            ),
        ];
        for (attribute, yes) in transpose {
            let value = i32::from(yes);
            // SAFETY: the description lives, and the attribute is a 32-bit number.
            unsafe {
                result::set_matmul_desc_attribute(plan.description, attribute, (&raw const value).cast(), 4)?;
            };
        }
        let preference = result::create_matmul_pref()?;
        let bytes = WORKSPACE_BYTES as u64;
        // Sums of parts go through the workspace in a fixed order; adding in place by atomics would not be repeatable.
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        // SAFETY: the preference lives; the attributes are of 64 and of 32 bits; the layouts are those of the product.
        let heuristic = unsafe {
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                8,
            )
            .and_then(|()| {
                result::set_matmul_pref_attribute(
                    preference,
                    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    (&raw const schemes).cast(),
                    4,
                )
            })
            .and_then(|()| {
                // Operands begin at rows of 16 bytes; without this it takes them to begin at 256.
                let alignment = 16u32;
                [
                    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                ]
                .into_iter()
                .try_for_each(|attribute| {
                    result::set_matmul_pref_attribute(preference, attribute, (&raw const alignment).cast(), 4)
                })
            })
            .and_then(|()| {
                let [a, b, d] = plan.layouts;
                result::get_matmul_algo_heuristic(handle, plan.description, a, b, d, d, preference)
            })
        };
        // SAFETY: made above and used no more.
        unsafe { result::destroy_matmul_pref(preference)? };
        plan.algorithm = heuristic?.algo;
        Ok(plan)
    }
}

/// The layout of an operand of `rows` x `k`: column-major `k` x `rows` where `k` runs along memory, else `rows` x `k`.
fn layout(
    number: sys::cudaDataType_t,
    rows: usize,
    k: usize,
    operand: &Operand<'_, Buffer>,
    along: bool,
) -> Result<sys::cublasLtMatrixLayout_t, CublasError> {
    let (rows, columns, leading) = if along {
        (k, rows, operand.row_stride)
    } else {
        (rows, k, operand.k_stride)
    };
    result::create_matrix_layout(number, rows as u64, columns as u64, leading as i64)
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new` and destroyed once; what is null was never made.
        unsafe {
            for layout in self.layouts {
                if !layout.is_null() {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_matmul_desc(self.description);
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: made by `open` and destroyed once, after the plans.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
