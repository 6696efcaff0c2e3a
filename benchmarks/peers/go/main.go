// The Go peer: RPC and events with amqp091-go, each the way its documentation shows.
//
//	gopeer rpc-server | rpc-client | event-handler | event-publisher
//
// It speaks the harness's protocol, described in ../protocol.py.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	prefetch    = 256
	contentType = "application/json"
)

func main() {
	roles := map[string]func(){
		"rpc-server":      rpcServer,
		"rpc-client":      rpcClient,
		"event-handler":   eventHandler,
		"event-publisher": eventPublisher,
	}
	if len(os.Args) < 2 || roles[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: gopeer rpc-server|rpc-client|event-handler|event-publisher [options]")
		os.Exit(2)
	}
	roles[os.Args[1]]()
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func openChannel() *amqp.Channel {
	connection, err := amqp.Dial(os.Getenv("AMQP_URI"))
	must(err)
	channel, err := connection.Channel()
	must(err)
	return channel
}

// say reports to the harness: one line, `{"bench": kind, ...}`.
func say(kind string, values map[string]any) {
	line := fmt.Sprintf(`{"bench": %q`, kind)
	for key, value := range values {
		encoded, err := json.Marshal(value)
		must(err)
		line += fmt.Sprintf(", %q: %s", key, encoded)
	}
	fmt.Println(line + "}")
}

func exitOnTerminate() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		os.Exit(0)
	}()
}

// wallClock is the time in seconds, comparable with other processes on this machine.
func wallClock() float64 {
	return float64(time.Now().UnixNano()) / 1e9
}
