//! What a session runs on, and how it is written in the configuration.
//! Knows names and numbers; must not know ONNX Runtime.

use std::fmt;

/// Most devices of one machine that a number may name.
const MAX_DEVICE_INDEX: u16 = 255;

/// What a session runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU through CUDA, by its number.
    Cuda(u16),
    /// An NVIDIA GPU through TensorRT, by its number.
    TensorRt(u16),
}

impl Device {
    /// How a device is written, as the end of the sentence "allowed is ...".
    pub const ALLOWED: &'static str = "\"cpu\", \"cuda:N\" or \"tensorrt:N\", N from 0 to 255";

    /// Reads `cpu`, `cuda:N` or `tensorrt:N`; without a number the first GPU is meant.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, Some(index)),
            None => (text, None),
        };
        // `parse` accepts a sign; a device number has none.
        let index = match index {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|n| *n <= MAX_DEVICE_INDEX)?)
            }
            Some(_) => return None,
            None => None,
        };
        match (kind, index) {
            ("cpu", None) => Some(Self::Cpu),
            ("cuda", index) => Some(Self::Cuda(index.unwrap_or(0))),
            ("tensorrt", index) => Some(Self::TensorRt(index.unwrap_or(0))),
            _ => None,
        }
    }

    /// Whether it is anything but the processor.
    pub fn is_gpu(self) -> bool {
        self != Self::Cpu
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
            Self::TensorRt(index) => write!(formatter, "tensorrt:{index}"),
        }
    }
}

/// A device that was asked for and does not work.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not a device at all.
    #[error("model.device = {0:?} is no device; allowed is {allowed}", allowed = Device::ALLOWED)]
    Unknown(String),
    /// A device that this machine or this build of ONNX Runtime does not offer.
    #[error(
        "the device {device} cannot be used: {reason}; it needs an NVIDIA GPU with its driver and the GPU build of \
         ONNX Runtime (`make setup RUNTIME=gpu`); otherwise set model.device = \"cpu\", or model.fallback = \"cpu\" \
         to go on without it"
    )]
    Unavailable {
        /// The device.
        device: Device,
        /// What the runtime said.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_back_as_they_are_written() {
        for text in ["cpu", "cuda:0", "cuda:7", "tensorrt:1"] {
            assert_eq!(Device::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Device::parse("cuda"), Some(Device::Cuda(0)));
    }

    #[test]
    fn what_is_no_device_is_none() {
        for text in [
            "", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:+1", "cuda:256", "cuda:x", "CUDA:0",
        ] {
            assert_eq!(Device::parse(text), None, "{text:?}");
        }
    }
}
