//! Media types of wasm in images.

/// The media types of layers that are one wasm binary each.
pub(crate) const WASM: &str = "application/wasm";
/// A component, as an ordinary image's layer.
pub(crate) const COMPONENT_LAYER: &str = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
/// A core module, as an ordinary image's layer.
pub(crate) const MODULE_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// The configuration of a wasm artifact.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// Whether a layer of this type is one wasm binary.
pub(super) fn is_wasm(media_type: &str) -> bool {
    [WASM, COMPONENT_LAYER, MODULE_LAYER].contains(&media_type)
}
