"""Training of diffusion models on pairs: LoRAs, ControlNets and InstructPix2Pix on any preset's model."""
