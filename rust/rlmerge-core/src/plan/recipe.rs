//! What the user wrote, and its parameters resolved against the table of methods.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::method::{BaseUse, Default, Kind, Method, Parameter, methods, nearest};
use super::modifiers::Modifiers;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Whose semantics and defaults count where the papers and mergekit differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// The papers'.
    Paper,
    /// mergekit 0.1.5's.
    Mergekit,
}

/// Shape of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputForm {
    /// One `.safetensors` file.
    File,
    /// A Hugging Face folder.
    Folder,
}

/// How tensor bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// By positional reads into buffers that stay in the processor's cache.
    #[default]
    Pread,
    /// Through a memory map that is given back behind the reading head.
    Mmap,
}

/// Whose tensors without arithmetic are taken where models differ in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntFrom {
    /// Not an expert's.
    Named(Named),
    /// Those of this expert, counted from 1.
    Expert(usize),
}

/// A model that is called by what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Named {
    /// The base.
    Base,
}

/// What becomes of a finite value that the output's dtype cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnOverflow {
    /// What rounding makes of it: infinity, or NaN in `F8_E4M3`. It is counted and warned of.
    #[default]
    Inf,
    /// Nothing is published.
    Error,
    /// The largest value of its sign.
    Clamp,
}

/// What an interruption of the system, such as a power cut, can do to an output that was reported as done. An
/// interruption of the process never shows half an output, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: files, stage folder and the folder around the output are synced.
    #[default]
    Full,
    /// It can take the output away again, but not leave a part of it: the folder around it is not synced.
    File,
    /// Anything: nothing is synced or waited for.
    None,
}

/// One model of a recipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// Its file or folder; an adapter's folder when the recipe has a base.
    pub path: PathBuf,
    /// What its task is called where masks are written; the last part of the path when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// The folder of an adapter that changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Parameters for this model alone.
    #[serde(default)]
    pub parameters: BTreeMap<String, Value>,
}

/// What is to be merged, how, and whereto.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name or alias of the method.
    pub method: String,
    /// The experts, in order; for methods without a base simply the models.
    pub models: Vec<ModelEntry>,
    /// The base.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// The folder of an adapter that changes the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_adapter: Option<PathBuf>,
    /// Parameters for all models: one value, or a list with one for each expert.
    #[serde(default)]
    pub parameters: BTreeMap<String, Value>,
    /// What is asked of any method.
    #[serde(default)]
    pub modifiers: Modifiers,
    /// Seed of random masks.
    #[serde(default)]
    pub seed: u64,
    /// Output dtype of tensors with arithmetic; as in the base (or first model) when absent.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Whose semantics.
    #[serde(default = "paper")]
    pub compat: Compat,
    /// Where the output goes.
    pub output: PathBuf,
    /// Its shape.
    pub output_kind: OutputForm,
    /// Most tensor bytes in one shard.
    #[serde(default = "five_gigabytes")]
    pub shard_size: u64,
    /// Number of worker threads; as many as there are processors when absent.
    #[serde(default)]
    pub threads: Option<usize>,
    /// How tensor bytes are read.
    #[serde(default)]
    pub io: Io,
    /// What is synced before the merge is done.
    #[serde(default)]
    pub durability: Durability,
    /// Whether an existing output may be replaced.
    #[serde(default)]
    pub force: bool,
    /// Whether to go on with what a killed run of the same merge left.
    #[serde(default)]
    pub resume: bool,
    /// Whether what was done stays beside the output when the merge fails.
    #[serde(default)]
    pub keep_partial: bool,
    /// Whether everything is read back before it is published.
    #[serde(default)]
    pub verify: bool,
    /// Whether NaN or infinity in the output is an error.
    #[serde(default)]
    pub strict: bool,
    /// What becomes of values that the output's dtype cannot hold.
    #[serde(default)]
    pub on_overflow: OnOverflow,
    /// Whose integers, truth values and other tensors without arithmetic are taken; they must be equal when absent.
    #[serde(default)]
    pub int_from: Option<IntFrom>,
    /// Whether every input tensor is read a second time before anything is published.
    #[serde(default)]
    pub verify_inputs: bool,
    /// Whether models that are, or hold, symbolic links are refused.
    #[serde(default)]
    pub no_symlinks: bool,
}

fn paper() -> Compat {
    Compat::Paper
}

fn five_gigabytes() -> u64 {
    5_000_000_000
}

/// Most worker threads that a recipe may ask for.
const MAX_THREADS: usize = 1024;

impl Recipe {
    /// Checks that there is such a model as `int_from` names; `masked` when a base is to be rebuilt from the output.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`].
    pub fn check_int_from(&self, masked: bool) -> Result<()> {
        let message = match self.int_from {
            None => return Ok(()),
            Some(_) if masked => {
                format!(
                    "`int_from` and method `{}`: what is rebuilt needs them equal in all models",
                    self.method
                )
            }
            Some(IntFrom::Named(Named::Base)) if self.base.is_none() => {
                "`int_from` says base, but there is none".into()
            }
            Some(IntFrom::Expert(number)) if !(1..=self.models.len()).contains(&number) => {
                format!("`int_from` names expert {number} of {}; they count from 1", self.models.len())
            }
            Some(_) => return Ok(()),
        };
        Err(Error::RecipeInvalid { message })
    }

    /// Reads a recipe from JSON.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`] with the key that is wrong.
    pub fn from_json(text: &str) -> Result<Self> {
        let recipe: Self =
            serde_json::from_str(text).map_err(|e| Error::RecipeInvalid { message: e.to_string() })?;
        if recipe.shard_size == 0 {
            return Err(Error::RecipeInvalid { message: "`shard_size` must be at least 1 byte".into() });
        }
        if recipe.threads.is_some_and(|t| t == 0 || t > MAX_THREADS) {
            return Err(Error::RecipeInvalid {
                message: format!("`threads` must be between 1 and {MAX_THREADS}"),
            });
        }
        Ok(recipe)
    }

    /// The output dtype asked for.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`] for a dtype that has no arithmetic.
    pub fn output_dtype(&self) -> Result<Option<DType>> {
        let Some(name) = &self.dtype else { return Ok(None) };
        match DType::parse(name) {
            Some(d) if d.has_arithmetic() => Ok(Some(d)),
            _ => {
                let known: Vec<_> =
                    DType::ALL.iter().filter(|d| d.has_arithmetic()).map(|d| d.name()).collect();
                Err(Error::RecipeInvalid {
                    message: format!("`dtype` {name:?} is not one of {}", known.join(", ")),
                })
            }
        }
    }
}

/// A method with all its parameters resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The method.
    pub method: &'static Method,
    /// Whose semantics.
    pub compat: Compat,
    /// Parameters of the whole merge.
    pub global: BTreeMap<&'static str, Value>,
    /// Parameters that may differ, for each expert.
    pub experts: Vec<BTreeMap<&'static str, Value>>,
    /// What the user should know about how parameters were read.
    pub notes: Vec<String>,
}

impl Settings {
    /// Resolves a recipe's parameters: every value given, defaulted or refused.
    ///
    /// # Errors
    /// One of the recipe errors, naming the parameter and the model.
    pub fn resolve(recipe: &Recipe) -> Result<Self> {
        let method = Method::find(&recipe.method).ok_or_else(|| Error::UnknownMethod {
            name: recipe.method.clone(),
            suggestion: nearest(
                &recipe.method.replace('-', "_"),
                methods().flat_map(|m| std::iter::once(m.name).chain(m.aliases.iter().copied())),
            ),
        })?;
        check_models(method, recipe)?;
        let mut settings = Self {
            method,
            compat: recipe.compat,
            global: BTreeMap::new(),
            experts: vec![BTreeMap::new(); recipe.models.len()],
            notes: Vec::new(),
        };
        for (name, value) in &recipe.parameters {
            if let Some(parameter) = settings.known(name, "the recipe")? {
                settings.set_for_all(parameter, value)?;
            }
        }
        for (at, model) in recipe.models.iter().enumerate() {
            let place = model.path.display().to_string();
            for (name, value) in &model.parameters {
                let Some(parameter) = settings.known(name, &place)? else { continue };
                let value = check(parameter, value, &place, recipe.compat)?;
                if parameter.per_expert {
                    settings.experts[at].insert(parameter.name, value);
                } else if recipe.models.len() == 1 || settings.global.get(parameter.name) == Some(&value) {
                    settings.global.insert(parameter.name, value);
                } else {
                    return Err(Error::RecipeInvalid {
                        message: format!(
                            "`{name}` of {place} holds for the whole merge; give it once, under `parameters`"
                        ),
                    });
                }
            }
        }
        settings.fill_defaults()?;
        let has_base = recipe.base.is_some();
        let merges_deltas = has_base && matches!(method.base, BaseUse::Required | BaseUse::Optional);
        recipe.modifiers.check(method.name, merges_deltas, has_base, recipe.models.len())?;
        Ok(settings)
    }

    fn known(&mut self, name: &str, place: &str) -> Result<Option<&'static Parameter>> {
        let name = name.replace('-', "_");
        if let Some(parameter) = self.method.parameter(&name) {
            return Ok(Some(parameter));
        }
        if self.compat == Compat::Mergekit && self.method.ignored_in_mergekit.contains(&name.as_str()) {
            self.notes.push(format!(
                "`{name}` of {place} has no effect on {}, here as in mergekit",
                self.method.name
            ));
            return Ok(None);
        }
        Err(Error::UnknownParameter {
            suggestion: nearest(&name, self.method.parameters.iter().map(|p| p.name)),
            name,
            method: self.method.name.into(),
        })
    }

    fn set_for_all(&mut self, parameter: &'static Parameter, value: &Value) -> Result<()> {
        if !parameter.per_expert {
            let value = check(parameter, value, "the recipe", self.compat)?;
            self.global.insert(parameter.name, value);
            return Ok(());
        }
        let values = match value {
            Value::Array(list) if list.len() == self.experts.len() => list.clone(),
            Value::Array(list) => {
                return Err(Error::ParameterCount {
                    parameter: parameter.name.into(),
                    expected: self.experts.len(),
                    got: list.len(),
                });
            }
            one => vec![one.clone(); self.experts.len()],
        };
        for (at, value) in values.iter().enumerate() {
            let value = check(parameter, value, &format!("expert {}", at + 1), self.compat)?;
            self.experts[at].insert(parameter.name, value);
        }
        Ok(())
    }

    fn fill_defaults(&mut self) -> Result<()> {
        for parameter in self.method.parameters {
            let default = match self.compat {
                Compat::Paper => parameter.default,
                Compat::Mergekit => parameter.default_mergekit,
            };
            let tables: Vec<&mut BTreeMap<_, _>> =
                if parameter.per_expert { self.experts.iter_mut().collect() } else { vec![&mut self.global] };
            for table in tables {
                if table.contains_key(parameter.name) {
                    continue;
                }
                let value = match default {
                    Default::Missing => {
                        return Err(Error::MissingParameter {
                            parameter: parameter.name.into(),
                            method: self.method.name.into(),
                        });
                    }
                    Default::Number(n) => Value::from(n),
                    Default::Integer(n) => Value::from(n),
                    Default::Flag(b) => Value::from(b),
                    Default::Word(w) => Value::from(w),
                };
                table.insert(parameter.name, value);
            }
        }
        Ok(())
    }

    /// A number of the whole merge.
    #[must_use]
    pub fn number(&self, name: &str) -> f64 {
        self.global.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    /// A flag of the whole merge; false where the method has none.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.global.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A word of the whole merge; empty where the method has none.
    #[must_use]
    pub fn word(&self, name: &str) -> &str {
        self.global.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// A number of each expert.
    #[must_use]
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.experts.iter().map(|e| e.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)).collect()
    }

    /// A word or a path of each expert; empty where the method has none.
    #[must_use]
    pub fn words(&self, name: &str) -> Vec<&str> {
        self.experts.iter().map(|e| e.get(name).and_then(Value::as_str).unwrap_or("")).collect()
    }

    /// The weights of the experts.
    #[must_use]
    pub fn weights(&self) -> Vec<f64> {
        self.numbers("weight")
    }
}

fn check_models(method: &'static Method, recipe: &Recipe) -> Result<()> {
    let (least, most) = method.experts;
    let count = recipe.models.len();
    let wrong = |expected: &str, got: String| {
        Err(Error::ModelCount { method: method.name.into(), expected: expected.into(), got })
    };
    let models = |n: usize| format!("{n} model{}", if n == 1 { "" } else { "s" });
    let experts = |n: usize| format!("{n} expert{}", if n == 1 { "" } else { "s" });
    let fits = count >= least && most.is_none_or(|m| count <= m);
    match (method.base, &recipe.base) {
        (BaseUse::None, Some(_)) => Err(Error::RecipeInvalid {
            message: format!(
                "method `{}` takes no base: leave it out, or list it among the models",
                method.name
            ),
        }),
        // A base that is itself one of the models.
        (BaseUse::Model, base) => match count + usize::from(base.is_some()) {
            2 => Ok(()),
            total => wrong("exactly two models, the base counted if it is given", models(total)),
        },
        (BaseUse::Required, base) if base.is_none() || !fits => {
            let expected = match most {
                Some(m) if m == least => format!("a base and exactly {}", experts(m)),
                _ if least == 1 => "a base and at least one expert".into(),
                _ => format!("a base and at least {}", experts(least)),
            };
            let got = if count == 0 { "no expert".into() } else { models(count) };
            let base = if base.is_some() { "a base and " } else { "" };
            let none = if recipe.base.is_none() { " and no base" } else { "" };
            wrong(&expected, format!("{base}{got}{none}"))
        }
        (BaseUse::None | BaseUse::Optional, _) if !fits => {
            let expected = match most {
                Some(m) if m == least => format!("exactly {}", models(m)),
                _ => format!("at least {}", models(least)),
            };
            wrong(&expected, models(count))
        }
        _ => Ok(()),
    }
}

/// A value checked against a parameter's range and brought into its one form.
fn check(parameter: &Parameter, value: &Value, place: &str, compat: Compat) -> Result<Value> {
    let refuse = || {
        Err(Error::ParameterOutOfRange {
            parameter: parameter.name.into(),
            place: crate::error::escape(place),
            value: value.to_string(),
            expected: parameter.kind.range(),
        })
    };
    match parameter.kind {
        Kind::Number { low, high, open } => match value.as_f64() {
            Some(n) if n.is_finite() && n <= high && (n > low || (n == low && !open)) => Ok(Value::from(n)),
            _ => refuse(),
        },
        Kind::Integer { low, high } => match value.as_i64().or_else(|| whole(value)) {
            Some(n) if (low..=high).contains(&n) => Ok(Value::from(n)),
            _ => refuse(),
        },
        Kind::Flag => value.as_bool().map_or_else(refuse, |b| Ok(Value::from(b))),
        Kind::Path => match value {
            Value::String(path) if !path.is_empty() && !path.contains('\0') => Ok(value.clone()),
            _ => refuse(),
        },
        Kind::Choice(words) => match value {
            Value::String(word) if words.contains(&word.to_ascii_lowercase().as_str()) => {
                Ok(Value::from(word.to_ascii_lowercase()))
            }
            // mergekit writes `rescale` as a flag.
            Value::Bool(on) if parameter.name == "rescale" => Ok(Value::from(match (on, compat) {
                (false, _) => "none",
                (true, Compat::Mergekit) => "l1",
                (true, Compat::Paper) => "inverse_p",
            })),
            _ => refuse(),
        },
    }
}

/// A whole number that was written with a point.
fn whole(value: &Value) -> Option<i64> {
    value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15).map(|n| n as i64)
}
