//! The floor plan of the workspace: who may depend on whom, what each driver's folder contains, that no files import each
//! other in a circle, and which words are retired.

mod arrows;
mod circles;
mod contents;
mod imports;
mod source;
mod words;
