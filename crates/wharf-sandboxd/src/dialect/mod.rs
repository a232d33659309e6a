pub mod openhands;
