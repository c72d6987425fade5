//! The verbs, each with its form and what reads it.

use super::args::Args;
use super::{Fault, Operation};
use crate::op;

/// A verb of the language.
pub struct Verb {
    /// The word.
    pub name: &'static str,
    /// Its form.
    pub usage: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    pub(super) parse: Parse,
}

type Parse = fn(&mut Args) -> Result<Box<dyn Operation>, Fault>;

const fn verb(name: &'static str, usage: &'static str, about: &'static str, parse: Parse) -> Verb {
    Verb {
        name,
        usage,
        about,
        parse,
    }
}

/// All verbs, in the order in which one looks for them.
pub static VERBS: &[Verb] = &[
    verb(
        "in",
        "in NAME = PATH",
        "gives an input a name; the first is the state dict at hand",
        op::files::parse_in,
    ),
    verb(
        "out",
        "out PATH [shard=5GB] [dtype=bf16]",
        "where the result goes",
        op::files::parse_out,
    ),
    verb(
        "unwrap",
        "unwrap A|B|C",
        "the first of these containers of the checkpoint is the state dict",
        op::select::parse_unwrap,
    ),
    verb(
        "strip",
        "strip PREFIX…",
        "takes prefixes off the names that have them; strip! demands it of all",
        op::names::parse_strip,
    ),
    verb(
        "add",
        "add PREFIX",
        "puts a prefix in front of every name",
        op::names::parse_add,
    ),
    verb(
        "rename",
        "rename SOURCE -> TARGET[, …]",
        "new names, all at once",
        op::names::parse_rename,
    ),
    verb(
        "move",
        "move SOURCE -> TARGET[, …]",
        "as rename",
        op::names::parse_rename,
    ),
    verb(
        "replace",
        "replace OLD=NEW…",
        "replaces texts in every name, one after the other",
        op::names::parse_replace,
    ),
    verb(
        "map",
        "map TABLE.tsv",
        "new names from a table of two columns",
        op::names::parse_map,
    ),
    verb(
        "keep",
        "keep PATTERN… [except PATTERN…]",
        "leaves out what does not match",
        op::select::parse_keep,
    ),
    verb(
        "drop",
        "drop PATTERN… [except PATTERN…]",
        "leaves out what matches",
        op::select::parse_drop,
    ),
    verb(
        "copy",
        "copy SOURCE -> TARGET[, …]",
        "the same values again, as own tensors",
        op::names::parse_copy,
    ),
    verb(
        "tie",
        "tie SOURCE -> TARGET[, …]",
        "another name for the same tensor",
        op::names::parse_tie,
    ),
    verb(
        "untie",
        "untie PATTERN…",
        "own tensors where names shared one",
        op::names::parse_untie,
    ),
    verb(
        "renumber",
        "renumber PREFIX keep 0,2,4 | compact",
        "keeps some layers, or closes gaps, and counts from 0",
        op::select::parse_renumber,
    ),
    verb(
        "cat",
        "cat DIM SOURCE -> TARGET [by heads=H]",
        "joins tensors along a dimension",
        op::join::parse_cat,
    ),
    verb(
        "split",
        "split DIM SOURCE -> TARGET [sizes=A,B] [parts=N] [by heads=H]",
        "parts of a tensor along a dimension",
        op::join::parse_split,
    ),
    verb(
        "stack",
        "stack [DIM] SOURCE -> TARGET",
        "joins tensors along a new dimension",
        op::join::parse_stack,
    ),
    verb(
        "unstack",
        "unstack [DIM] SOURCE -> TARGET",
        "one tensor per index of a dimension",
        op::join::parse_unstack,
    ),
    verb(
        "permute",
        "permute PATTERN… D0,D1,…",
        "dimensions in another order",
        op::shape::parse_permute,
    ),
    verb("t", "t PATTERN…", "transposes matrices", op::shape::parse_t),
    verb(
        "reshape",
        "reshape PATTERN… A,B,-1",
        "the same elements under another shape",
        op::shape::parse_reshape,
    ),
    verb(
        "squeeze",
        "squeeze PATTERN… [dim=D]",
        "takes dimensions of size 1 out",
        op::shape::parse_squeeze,
    ),
    verb(
        "unsqueeze",
        "unsqueeze PATTERN… dim=D",
        "puts a dimension of size 1 in",
        op::shape::parse_unsqueeze,
    ),
    verb(
        "slice",
        "slice PATTERN… DIM START:STOP:STEP",
        "a range of indices",
        op::shape::parse_slice,
    ),
    verb(
        "take",
        "take PATTERN… DIM 0,2,1 | @FILE.json",
        "indices in any order",
        op::shape::parse_take,
    ),
    verb(
        "roll",
        "roll PATTERN… DIM N",
        "moves indices around, as torch.roll",
        op::shape::parse_roll,
    ),
    verb(
        "cast",
        "cast PATTERN… [except PATTERN…] TYPE",
        "another element type",
        op::cast::parse_cast,
    ),
    verb(
        "freeze",
        "freeze PATTERN… [except PATTERN…]",
        "marks as frozen",
        op::freeze::parse_freeze,
    ),
    verb(
        "unfreeze",
        "unfreeze PATTERN… [except PATTERN…]",
        "marks as trainable",
        op::freeze::parse_unfreeze,
    ),
    verb(
        "group",
        "group PATTERN[,PATTERN]… | by PATTERN  [decay=D]",
        "ordered groups of parameters and their learning rates",
        op::group::parse_group,
    ),
    verb(
        "freeze-to",
        "freeze-to N",
        "freezes the groups in front of group N, trains the others",
        op::group::parse_freeze_to,
    ),
    verb(
        "from",
        "from FILE take PATTERN… | SOURCE -> TARGET",
        "tensors of another file",
        op::files::parse_from,
    ),
    verb(
        "merge",
        "merge linear|uniform|ema NAME:WEIGHT… [normalize=true] [decay=D] [ints=first] [dtype=T]",
        "averages state dicts",
        op::merge::parse_merge,
    ),
    verb(
        "meta",
        "meta set KEY=VALUE… | drop PATTERN…",
        "metadata of the result",
        op::meta::parse_meta,
    ),
    verb(
        "rows",
        "rows PATTERN… N [fill=zeros|mean|normal:STD|copy:ROW] [multiple=M]",
        "fewer or more rows",
        op::channels::parse_rows,
    ),
    verb(
        "in_chans",
        "in_chans PATTERN… N [mode=timm|mean|zero]",
        "a convolution for another number of channels",
        op::channels::parse_in_chans,
    ),
    verb(
        "pos_embed",
        "pos_embed PATTERN… to=HxW [from=HxW] [prefix=1] [mode=bicubic] [antialias=true]",
        "position embeddings for another grid",
        op::resample::parse_pos_embed,
    ),
    verb(
        "patch_embed",
        "patch_embed PATTERN… to=HxW [mode=bicubic] [antialias=true]",
        "a patch embedding for other patches",
        op::resample::parse_patch_embed,
    ),
    verb(
        "relpos",
        "relpos PATTERN… to=HxW [extra=N] [mode=bicubic|beit|beit-cubic]",
        "relative positions for another window",
        op::resample::parse_relpos,
    ),
    verb(
        "interp",
        "interp PATTERN… axis=D n=N [mode=linear|nearest|cubic]",
        "one dimension interpolated",
        op::resample::parse_interp,
    ),
    verb(
        "init",
        "init PATTERN… [METHOD] | NAME SHAPE METHOD [seed=0] [dtype=T]",
        "values as torch's initialisers draw them",
        op::init::parse_init,
    ),
    verb(
        "zeros",
        "zeros NAME SHAPE [dtype=T]",
        "a new tensor of zeros",
        op::init::parse_zeros,
    ),
    verb(
        "ones",
        "ones NAME SHAPE [dtype=T]",
        "a new tensor of ones",
        op::init::parse_ones,
    ),
    verb(
        "head",
        "head MODULE classes=N [init=METHOD] [in=D] [bias=true] [seed=0] | drop",
        "a new classifier in the place of the old, or none",
        op::init::parse_head,
    ),
    verb(
        "let",
        "let NAME = EXPRESSION",
        "arithmetic on tensors",
        op::math::parse_let,
    ),
    verb(
        "scale",
        "scale PATTERN… FACTOR",
        "multiplies",
        op::math::parse_scale,
    ),
    verb(
        "fold",
        "fold bn|layerscale SOURCE -> TARGET | weight_norm PATTERN… | lora FOLDER",
        "what is applied one after the other as one",
        op::fold::parse_fold,
    ),
    verb(
        "lora",
        "lora extract base=FILE rank=N [alpha=A] [keep=PATTERN,…] | resize rank=N",
        "what was trained as an adapter of low rank, in PEFT's form",
        op::lora::parse_lora,
    ),
    verb(
        "align",
        "align like TARGET [by suffix|order|shape]",
        "names of another state dict",
        op::align::parse_align,
    ),
    verb(
        "load",
        "load like TARGET [strict=true] [assign=false] [class=NAME] [skip|crop|pad|interpolate|init=PATTERN]",
        "into a model, as torch's load_state_dict",
        op::load::parse_load,
    ),
    verb(
        "expect",
        "expect keys=like TARGET | shapes=like TARGET | PATTERN… count=N | no nan",
        "what must be so",
        op::expect::parse_expect,
    ),
];
