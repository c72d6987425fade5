//! Templates from text to graph.
