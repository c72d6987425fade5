//! Parameters into rows and sums, each tensor once however many names it has.

use std::collections::HashMap;

use super::tree::{Identity, Item, Tree};
use super::{DtypeSum, Largest, Param, Row, Tie, Totals};

/// Where a tensor was met.
struct Met<'d> {
    id: usize,
    first_name: &'d str,
    /// The last module that has it.
    last_row: usize,
}

/// Fills in the rows' parameters and counts; returns the sums.
pub(super) fn count(tree: &Tree<'_>, rows: &mut [Row]) -> Totals {
    let mut totals = Totals {
        is_marked: tree.is_marked,
        ..Totals::default()
    };
    let mut met: HashMap<Identity<'_>, Met<'_>> = HashMap::new();
    // Elements that no row above has, to find the rows that bring nothing new.
    let mut n_new = vec![0_usize; rows.len()];
    let mut places = HashMap::new();
    let mut next_id = 0;
    for (at, node) in tree.nodes.iter().enumerate() {
        for item in &node.items {
            let before = item.identity.and_then(|identity| met.get_mut(&identity));
            // The modules that have the tensor already are those that hold the module where it was met last, the table being in
            // depth-first order.
            let (id, shared) = match before {
                Some(met) => {
                    totals.ties.push(Tie {
                        name: item.full_name.to_owned(),
                        first: met.first_name.to_owned(),
                    });
                    let shared = common_holder(tree, at, met.last_row);
                    met.last_row = at;
                    (met.id, Some(shared))
                }
                None => {
                    add_new(&mut totals, &mut places, item);
                    next_id += 1;
                    if let Some(identity) = item.identity {
                        let first = Met {
                            id: next_id,
                            first_name: item.full_name,
                            last_row: at,
                        };
                        met.insert(identity, first);
                    }
                    (next_id, None)
                }
            };
            if !item.is_parameter {
                continue;
            }
            if shared != Some(at) {
                rows[at].n_own = rows[at].n_own.saturating_add(item.numel);
            }
            let mut holder = Some(at);
            while let Some(row) = holder.filter(|_| holder != shared) {
                rows[row].n_params = rows[row].n_params.saturating_add(item.numel);
                if item.trains {
                    rows[row].n_trainable = rows[row].n_trainable.saturating_add(item.numel);
                }
                if shared.is_none() {
                    n_new[row] = n_new[row].saturating_add(item.numel);
                }
                holder = tree.nodes[row].parent;
            }
            rows[at].params.push(Param {
                name: item.name.to_owned(),
                shape: item.shape.to_vec(),
                dtype: item.dtype.to_owned(),
                numel: item.numel,
                trains: item.trains,
                id,
            });
        }
    }
    for (row, n_new) in rows.iter_mut().zip(n_new) {
        row.is_recursive = row.n_params > 0 && n_new == 0;
    }
    totals
}

/// The innermost module that holds both, or is one of them and holds the other.
fn common_holder(tree: &Tree<'_>, a: usize, b: usize) -> usize {
    let (mut a, mut b) = (a, b);
    while a != b {
        // In table order a holder precedes what it holds: of two different modules the later one does not hold the other.
        let later = a.max(b);
        let holder = tree.nodes[later].parent.unwrap_or(0);
        (a, b) = (a.min(b), holder);
    }
    a
}

fn add_new<'d>(totals: &mut Totals, places: &mut HashMap<&'d str, usize>, item: &Item<'d>) {
    let add = |sum: &mut usize, n: usize| *sum = sum.saturating_add(n);
    if item.is_parameter {
        add(&mut totals.n_params, item.numel);
        add(&mut totals.params_nbytes, item.nbytes);
        if item.trains {
            add(&mut totals.n_trainable, item.numel);
        }
    } else {
        totals.n_buffers += 1;
        add(&mut totals.buffers_nbytes, item.nbytes);
    }
    let place = *places.entry(item.dtype).or_insert_with(|| {
        totals.dtypes.push(DtypeSum {
            dtype: item.dtype.to_owned(),
            n_tensors: 0,
            numel: 0,
            nbytes: 0,
        });
        totals.dtypes.len() - 1
    });
    let sum = &mut totals.dtypes[place];
    sum.n_tensors += 1;
    add(&mut sum.numel, item.numel);
    add(&mut sum.nbytes, item.nbytes);
    if totals
        .largest
        .as_ref()
        .is_none_or(|largest| item.nbytes > largest.nbytes)
    {
        totals.largest = Some(Largest {
            name: item.full_name.to_owned(),
            dtype: item.dtype.to_owned(),
            shape: item.shape.to_vec(),
            nbytes: item.nbytes,
        });
    }
}
